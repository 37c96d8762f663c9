"""How many samples each source gives among the first n of all stages: stages, ledger and caps put together.

A stage's counts are made when they are first asked for, so a resume in a late stage pays for no other than those of
its sequence length. It reads no tokens and decides no row.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import partial

import numpy as np

from cpt_dist.data.caps import BoundCap, Cap, last_allowed, refusal, without_capped
from cpt_dist.data.layout import Layout
from cpt_dist.data.ledger_entry import LedgerEntry, generations_of
from cpt_dist.data.stage_counts import Knots, StageCounts
from cpt_dist.data.stage_plan import SourceRows, StagePlan
from cpt_dist.errors import UserError, nearest


class PlanCounts:
    """Counts over `stages` in a row, numbered through from sample 0.

    A source's samples are counted on from stage to stage where seq_len and packing are the same; others are another set
    of rows, counted from 0. Raises UserError with every unknown or empty source, wrong ledger entry, and cap of policy
    error that binds.
    """

    def __init__(
        self,
        stages: Sequence[StagePlan],
        sources: Sequence[SourceRows],
        ledger: Sequence[LedgerEntry] = (),
        caps: Mapping[str, Cap] | None = None,
    ) -> None:
        self.stages, self.sources = list(stages), list(sources)
        self.ledger = list(ledger)
        self._index = {source.name: number for number, source in enumerate(self.sources)}
        tokens = {source.name: max([0, *(tokens for _, tokens in source.rows.values())]) for source in self.sources}
        self.layout = Layout(tokens, generations_of(self.ledger))
        """Which of the sources are strata or generations of one, and what a mixture means for them."""
        self.caps = self.layout.caps(caps or {})
        self.capped: list[BoundCap] = []
        """The caps that bind, in the order in which they do."""
        self.starts = [0, *itertools.accumulate(stage.num_samples for stage in self.stages)]
        """First sample of each stage, and the number of all samples at the end."""
        starts = zip(self.stages, self.starts, strict=False)
        self._knots = [self.layout.knots(stage, self._absent(start)) for stage, start in starts]
        self._entry_knots: dict[int, Knots] = {}
        self._names = [self.layout.members(stage.mixture) for stage in self.stages]
        self._check_sources()
        self.members = [np.array([self._index[name] for name in names]) for names in self._names]
        """[stage] -> int64 [member]: indices into `sources` of what the stage reads, by name."""
        self._check_ledger()
        self._counts = [self._stage_counts(number) for number in range(len(self.stages))]
        self._before: dict[int, np.ndarray] = {}
        while bound := self._next_cap():
            self.capped.append(bound)
            first = self.stage_of(bound.n)
            self._before = {stage: before for stage, before in self._before.items() if stage <= first}
            for number in range(first, len(self.stages)):
                self._counts[number] = self._stage_counts(number, self._counts[number])

    def _check_sources(self) -> None:
        problems = []
        for stage, names, (_, knots) in zip(self.stages, self._names, self._knots, strict=True):
            for name, shares in zip(names, zip(*knots, strict=True), strict=True):
                if name not in self._index:
                    problems.append(f"stage '{stage.name}': source '{name}' is unknown; {nearest(name, self._index)}")
                elif max(shares) > 0 and self._rows(name, stage)[0] == 0:
                    problems.append(
                        f"stage '{stage.name}': source '{name}' has no rows but a share of {max(shares):.4g}; "
                        "give it text and run launch/prepare.py, or set its share to 0"
                    )
        if problems:
            raise UserError(problems)

    def _rows(self, name: str, stage: StagePlan) -> tuple[int, int]:
        """Number of rows of a source at the stage's sequence length, and the tokens in them."""
        return self.sources[self._index[name]].rows[stage.rows_key]

    def _check_ledger(self) -> None:
        problems = []
        last = -1
        for entry in self.ledger:
            what = f"ledger entry at sample {entry.n_start}"
            if not 0 <= entry.n_start < self.starts[-1] or entry.n_start <= last:
                problems.append(f"{what}: entries must rise within 0 to {self.starts[-1] - 1}")
                continue
            last = entry.n_start
            stage = self.stages[self.stage_of(entry.n_start)]
            if (entry.n_start - self.starts[self.stage_of(entry.n_start)]) % stage.batch_samples:
                problems.append(f"{what}: it is no step boundary of stage '{stage.name}'")
            for name, share in entry.weights.items():
                if name not in stage.mixture:
                    problems.append(f"{what}: source '{name}' is not in stage '{stage.name}'")
                elif share and not any(self._rows(view, stage)[0] for view in self.layout.views(name)):
                    problems.append(f"{what}: source '{name}' has no rows")
            problems += [
                f"{what}: source '{name}' has no generation {number} in data.shards; bring back the shards of the run"
                for name, number in sorted(generations_of([entry]) - self.layout.generations())
            ]
        if problems:
            raise UserError(problems)

    def _absent(self, n: int) -> set[tuple[str, int]]:
        """The generations that the ledger lets in behind sample n."""
        return generations_of([entry for entry in self.ledger if entry.n_start > n])

    def _stage_counts(self, number: int, earlier: StageCounts | None = None) -> StageCounts:
        """The counts of a stage: a segment for its plan and one for each ledger entry or cap within it."""
        stage, start, end = self.stages[number], self.starts[number], self.starts[number + 1]
        names = self._names[number]
        given = {start: self._knots[number]}
        weights = None
        for entry in self.ledger:
            if start <= entry.n_start < end:
                weights = entry.weights or weights  # an entry that only lets in a generation keeps the shares
                if entry.n_start not in self._entry_knots:
                    knots = self.layout.knots(stage, self._absent(entry.n_start), weights)
                    self._entry_knots[entry.n_start] = knots
                given[entry.n_start] = self._entry_knots[entry.n_start]
        places = sorted({*given, *(bound.n for bound in self.capped if start < bound.n < end)})
        schedules = []
        for place in places:
            knots = given[max(at for at in given if at <= place)]
            capped = [bound.source for bound in self.capped if bound.n <= place]
            try:
                schedules.append((place - start, without_capped(knots, names, capped, self.caps, self.layout.views)))
            except UserError as error:
                raise UserError(f"stage '{stage.name}': {problem}" for problem in error.problems) from error
        rows = [self._rows(name, stage) for name in names]
        per_token = [Fraction(num_rows, max(1, num_tokens)) for num_rows, num_tokens in rows]
        return StageCounts(stage.num_samples, schedules, per_token, earlier)

    def _next_cap(self) -> BoundCap | None:
        """The cap that binds first of those not yet in `capped`; UserError where its policy, or another's, is error."""
        known = {bound.source for bound in self.capped}
        found = []
        most = self._epochs_at_most() if set(self.caps) - known else {}
        for name in sorted(set(self.caps) - known):
            if most[name] < self.caps[name].max_epochs:
                continue  # the search would make the quotas of every stage
            epochs = partial(self.exact_epochs, self._index[name])
            n = last_allowed(epochs, Fraction(self.caps[name].max_epochs), self.starts[-1])
            if n is not None:
                found.append(BoundCap(name, n))
        refused = [bound for bound in found if self.caps[bound.source].policy == "error"]
        if refused:
            raise UserError(self._refusal(bound) for bound in sorted(refused, key=lambda bound: bound.n))
        return min(found, key=lambda bound: (bound.n, bound.source), default=None)

    def _refusal(self, bound: BoundCap) -> str:
        stage = self.stage_of(bound.n)
        progress = (bound.n - self.starts[stage]) / self.stages[stage].num_samples
        planned = float(self.exact_epochs(self._index[bound.source], self.starts[-1]))
        name = self.stages[stage].name
        return refusal(bound.source, self.caps[bound.source], bound.n, name, progress, planned)

    def _epochs_at_most(self) -> dict[str, float]:
        """Source -> a number of epochs that the whole plan doesn't exceed."""
        total = dict.fromkeys(self._index, 0.0)
        for stage, names, counts in zip(self.stages, self._names, self._counts, strict=True):
            for name, samples in zip(names, counts.at_most().tolist(), strict=True):
                total[name] += samples / max(1, self._rows(name, stage)[0])
        return total

    def exact_epochs(self, source: int, n: int) -> Fraction:
        """How often the source is read by the first n samples, all sequence lengths together."""
        total = Fraction(0)
        for number, part in self.parts(n):
            for member in np.flatnonzero(self.members[number] == source).tolist():
                num_rows = self.sources[source].rows[self.stages[number].rows_key][0]
                total += Fraction(self._counts[number].count_of(member, part), max(1, num_rows))
        return total

    def stage_of(self, n: int) -> int:
        """Index of the stage that sample n belongs to; raises IndexError outside the plan."""
        if not 0 <= n < self.starts[-1]:
            raise IndexError(f"sample {n} is outside 0 to {self.starts[-1] - 1}")
        return bisect_right(self.starts, n) - 1

    def parts(self, n: int) -> list[tuple[int, int]]:
        """(stage, samples of it) for each stage that the first n samples touch; IndexError outside the plan."""
        if not 0 <= n <= self.starts[-1]:
            raise IndexError(f"sample {n} is outside 0 to {self.starts[-1]}")
        ends = zip(self.starts, self.stages, strict=False)
        return [(i, min(n - start, stage.num_samples)) for i, (start, stage) in enumerate(ends) if n > start]

    def of_stage(self, stage: int) -> StageCounts:
        """The counts within a stage, of its members."""
        return self._counts[stage]

    def before(self, stage: int) -> np.ndarray:
        """Samples of each source in earlier stages of the same sequence length: int64 [source]."""
        if stage not in self._before:
            key = self.stages[stage].rows_key
            last = next((i for i in reversed(range(stage)) if self.stages[i].rows_key == key), None)
            if last is None:
                self._before[stage] = np.zeros(len(self.sources), dtype=np.int64)
            else:
                self._before[stage] = self.before(last).copy()
                self._before[stage][self.members[last]] += self._counts[last].counts(self.stages[last].num_samples)
        return self._before[stage]

    def counts(self, n: int) -> np.ndarray:
        """Samples of each source among the first n, over all stages: int64 [source], summing to n."""
        total = np.zeros(len(self.sources), dtype=np.int64)
        for stage, part in self.parts(n):
            total[self.members[stage]] += self._counts[stage].counts(part)
        return total
