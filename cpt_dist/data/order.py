"""The sample order: a pure function from a sample's global index n to the row of the source that it reads.

It depends on the stages, the seed and the sources' fingerprints, and on nothing else: not on world size, micro-batch,
worker count, engine or what was read before, so a run goes on at any n without replay. It holds no tokens and opens
no file. That the state is the same on every rank and is checked by fingerprint is what OLMo-core's loader does best.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import cached_property, partial
from typing import Any

import numpy as np

from cpt_dist.config import StageConfig, mixture_knots
from cpt_dist.data.caps import MANY_EPOCHS, BoundCap, Cap, last_allowed, many_epochs_warning, refusal, without_capped
from cpt_dist.data.ledger_entry import LedgerEntry, ledger_differences
from cpt_dist.data.packing import RowSource
from cpt_dist.data.permutation import Permutation, derive_key
from cpt_dist.data.plans import make_plan
from cpt_dist.data.stage_counts import StageCounts
from cpt_dist.data.stage_plan import SourceRows, StagePlan, stage_differences
from cpt_dist.data.window import WindowedPermutation, row_permutation
from cpt_dist.errors import UserError, nearest
from cpt_dist.files import fingerprint

ORDER_VERSION = 1
"""Raised by any change after which some n reads another row."""

_KEPT_PERMUTATIONS = 256


@dataclass(frozen=True)
class Samples:
    """Consecutive samples, int64 [count] each: index into `SampleOrder.source_names`, row of it, and its epoch."""

    source: np.ndarray
    row: np.ndarray
    epoch: np.ndarray


class SampleOrder:
    """The order of all samples of all stages, numbered through from 0.

    A stage's sources are taken by name, so neither the order of `sources` nor of a mixture's keys matters. A source's
    samples are counted on from stage to stage where seq_len is the same, so no row comes twice before its epoch is
    over; another seq_len is another set of rows, counted from 0. A `ledger` changes shares from its entries' samples
    on, `caps` (source -> cap) where a source has been read often enough; neither changes a sample before that. With
    `window_shards` rows are drawn from that many shards of a source at a time, with 0 from all. Raises UserError with
    every unknown or empty source, wrong entry, and cap of policy error that binds.
    """

    def __init__(
        self,
        stages: Sequence[StagePlan],
        sources: Sequence[SourceRows],
        seed: int,
        ledger: Sequence[LedgerEntry] = (),
        caps: Mapping[str, Cap] | None = None,
        window_shards: int = 0,
    ) -> None:
        self.window_shards = window_shards
        self.stages = list(stages)
        self.seed = seed
        self.ledger = list(ledger)
        self.caps = {name: cap for name, cap in (caps or {}).items() if name in {source.name for source in sources}}
        self.capped: list[BoundCap] = []
        """The caps that bind, in the order in which they do."""
        self.source_names = [source.name for source in sources]
        self._sources = list(sources)
        self._permutations: dict[tuple[int, int, int], Permutation | WindowedPermutation] = {}
        index = {name: number for number, name in enumerate(self.source_names)}
        self._check_sources(index)
        self._members = [[index[name] for name in sorted(stage.mixture)] for stage in self.stages]
        self.stage_starts = [0, *itertools.accumulate(stage.num_samples for stage in self.stages)]
        """First sample of each stage, and the number of all samples at the end."""
        self._check_ledger()
        self._count()
        while bound := self._next_cap():
            self.capped.append(bound)
            self._count()

    def _count(self) -> None:
        """Make the counts of every stage from stages, ledger and the caps known to bind."""
        self._quotas = [self._stage_counts(number) for number in range(len(self.stages))]
        self._bases: list[np.ndarray] = []  # samples of each source before the stage, at its seq_len
        so_far = {stage.seq_len: np.zeros(len(self._sources), dtype=np.int64) for stage in self.stages}
        for stage, members, quotas in zip(self.stages, self._members, self._quotas, strict=True):
            self._bases.append(so_far[stage.seq_len].copy())
            so_far[stage.seq_len][members] += quotas.counts(stage.num_samples)

    @classmethod
    def from_sources(
        cls,
        stages: Sequence[StageConfig],
        sources: Sequence[RowSource],
        seed: int,
        ledger: Sequence[LedgerEntry] = (),
        caps: Mapping[str, Cap] | None = None,
        window_shards: int = 0,
    ) -> SampleOrder:
        """The order of validated stages over opened sources, packed by `plans.make_plan`."""
        plans = [StagePlan.from_config(stage) for stage in stages]
        lengths = sorted({plan.seq_len for plan in plans})
        rows = []
        for source in sources:
            packs = {length: make_plan(source, length) for length in lengths}
            table = {length: (pack.num_rows, pack.num_tokens) for length, pack in packs.items()}
            shard_rows = {length: pack.rows_per_shard for length, pack in packs.items()} if window_shards else {}
            rows.append(SourceRows(source.name, source.fingerprint, table, shard_rows))
        return cls(plans, rows, seed, ledger, caps, window_shards)

    def _check_sources(self, index: dict[str, int]) -> None:
        problems = []
        for stage in self.stages:
            shares = dict(zip(sorted(stage.mixture), zip(*stage.knots()[1], strict=True), strict=True))
            for name in sorted(stage.mixture):
                if name not in index:
                    problems.append(f"stage '{stage.name}': source '{name}' is unknown; {nearest(name, index)}")
                elif max(shares[name]) > 0 and self._sources[index[name]].rows[stage.seq_len][0] == 0:
                    problems.append(
                        f"stage '{stage.name}': source '{name}' has no rows but a share of {max(shares[name]):.4g}; "
                        "give it text and run launch/prepare.py, or set its share to 0"
                    )
        if problems:
            raise UserError(problems)

    def _check_ledger(self) -> None:
        problems = []
        last = -1
        for entry in self.ledger:
            what = f"ledger entry at sample {entry.n_start}"
            if not 0 <= entry.n_start < self.num_samples or entry.n_start <= last:
                problems.append(f"{what}: entries must rise within 0 to {self.num_samples - 1}")
                continue
            last = entry.n_start
            stage = self.stages[self.stage_of(entry.n_start)]
            if (entry.n_start - self.stage_starts[self.stage_of(entry.n_start)]) % stage.batch_samples:
                problems.append(f"{what}: it is no step boundary of stage '{stage.name}'")
            for name, share in entry.weights.items():
                if name not in stage.mixture:
                    problems.append(f"{what}: source '{name}' is not in stage '{stage.name}'")
                elif share and not self._sources[self.source_names.index(name)].rows[stage.seq_len][0]:
                    problems.append(f"{what}: source '{name}' has no rows")
        if problems:
            raise UserError(problems)

    def _stage_counts(self, number: int) -> StageCounts:
        """The counts of a stage: a segment for its plan and one for each ledger entry or cap within it."""
        stage, start, end = self.stages[number], self.stage_starts[number], self.stage_starts[number + 1]
        names = sorted(stage.mixture)
        given = {start: stage.knots()}
        for entry in self.ledger:
            if start <= entry.n_start < end:
                given[entry.n_start] = mixture_knots({name: entry.weights.get(name, 0.0) for name in names})
        places = sorted({*given, *(bound.n for bound in self.capped if start < bound.n < end)})
        schedules = []
        for place in places:
            knots = given[max(at for at in given if at <= place)]
            capped = [bound.source for bound in self.capped if bound.n <= place]
            try:
                schedules.append((place - start, without_capped(knots, names, capped, self.caps)))
            except UserError as error:
                raise UserError(f"stage '{stage.name}': {problem}" for problem in error.problems) from error
        rows = {source.name: source.rows[stage.seq_len] for source in self._sources if source.name in stage.mixture}
        per_token = [Fraction(rows[name][0], max(1, rows[name][1])) for name in names]
        return StageCounts(stage.num_samples, schedules, per_token)

    def _next_cap(self) -> BoundCap | None:
        """The cap that binds first of those not yet in `capped`; UserError where its policy, or another's, is error."""
        known = {bound.source for bound in self.capped}
        found = []
        for name in sorted(set(self.caps) - known):
            epochs = partial(self._exact_epochs, self.source_names.index(name))
            n = last_allowed(epochs, Fraction(self.caps[name].max_epochs), self.num_samples)
            if n is not None:
                found.append(BoundCap(name, n))
        refused = [bound for bound in found if self.caps[bound.source].policy == "error"]
        if refused:
            raise UserError(self._refusal(bound) for bound in sorted(refused, key=lambda bound: bound.n))
        return min(found, key=lambda bound: (bound.n, bound.source), default=None)

    def _refusal(self, bound: BoundCap) -> str:
        stage = self.stage_of(bound.n)
        progress = (bound.n - self.stage_starts[stage]) / self.stages[stage].num_samples
        planned = float(self._exact_epochs(self.source_names.index(bound.source), self.num_samples))
        name = self.stages[stage].name
        return refusal(bound.source, self.caps[bound.source], bound.n, name, progress, planned)

    def _exact_epochs(self, source: int, n: int) -> Fraction:
        """How often the source is read by the first n samples, all sequence lengths together."""
        total = Fraction(0)
        for stage, part in self._stage_parts(n):
            if source in self._members[stage]:
                member = self._members[stage].index(source)
                num_rows = max(1, self._sources[source].rows[self.stages[stage].seq_len][0])
                total += Fraction(int(self._quotas[stage].counts(part)[member]), num_rows)
        return total

    def warnings(self) -> list[str]:
        """A line for each source that the whole plan reads more often than repetition is worth."""
        lines = []
        for index, name in enumerate(self.source_names):
            epochs = float(self._exact_epochs(index, self.num_samples))
            if epochs > MANY_EPOCHS:
                lines.append(many_epochs_warning(name, epochs))
        return lines

    def shares(self, n: int) -> dict[str, float]:
        """Shares of tokens of the stage's sources that hold at sample n, normalised; a step at n is behind it."""
        number = self.stage_of(n)
        stage, counts = self.stages[number], self._quotas[number]
        return dict(zip(sorted(stage.mixture), counts.shares(n - self.stage_starts[number]), strict=True))

    @property
    def num_samples(self) -> int:
        """Samples of all stages."""
        return self.stage_starts[-1]

    def stage_of(self, n: int) -> int:
        """Index of the stage that sample n belongs to; raises IndexError outside 0 … num_samples-1."""
        if not 0 <= n < self.num_samples:
            raise IndexError(f"sample {n} is outside 0 to {self.num_samples - 1}")
        return int(np.searchsorted(self.stage_starts, n, side="right")) - 1

    def samples(self, n: int, count: int) -> Samples:
        """Samples n … n+count-1; they may span stages. Raises IndexError outside the plan."""
        if count < 0 or not 0 <= n <= n + count <= self.num_samples:
            raise IndexError(f"samples {n} to {n + count} are outside 0 to {self.num_samples}")
        result = Samples(*(np.empty(count, dtype=np.int64) for _ in range(3)))
        at = n
        while at < n + count:
            stage = self.stage_of(at)
            stop = min(n + count, self.stage_starts[stage + 1])
            self._fill(result, stage, at - self.stage_starts[stage], stop - at, at - n)
            at = stop
        return result

    def _fill(self, result: Samples, stage: int, first: int, num: int, offset: int) -> None:
        seq_len = self.stages[stage].seq_len
        for member, index, places in self._quotas[stage].split(first, num):
            source = self._members[stage][member]
            num_rows = self._sources[source].rows[seq_len][0]
            start = int(self._bases[stage][source]) + index
            places = places + offset
            result.source[places] = source
            done = 0
            while done < places.size:
                epoch, local = divmod(start + done, num_rows)
                part = places[done : done + num_rows - local]
                permutation = self._permutation(source, seq_len, epoch)
                result.row[part] = permutation(np.arange(local, local + part.size, dtype=np.int64))
                result.epoch[part] = epoch
                done += part.size

    def _permutation(self, source: int, seq_len: int, epoch: int) -> Permutation | WindowedPermutation:
        key = (source, seq_len, epoch)
        if key not in self._permutations:
            if len(self._permutations) >= _KEPT_PERMUTATIONS:
                self._permutations.clear()
            name, num_rows = self._sources[source].name, self._sources[source].rows[seq_len][0]
            generation = 0  # a source that grows gets a further generation of rows; its old rows keep their order
            seed = derive_key("rows", self.seed, name, seq_len, generation, epoch)
            shard_rows = self._sources[source].shard_rows.get(seq_len)
            self._permutations[key] = row_permutation(num_rows, shard_rows, seed, self.window_shards)
        return self._permutations[key]

    def sample(self, n: int) -> tuple[str, int, int]:
        """Source name, row and epoch of sample n."""
        one = self.samples(n, 1)
        return self.source_names[int(one.source[0])], int(one.row[0]), int(one.epoch[0])

    def readings(self, source: int, seq_len: int, row: int) -> list[tuple[int, int]]:
        """(n, epoch) of every sample that reads a row, rising in n: the order the other way round, without a scan.

        `source` is an index into `source_names`. Costs about a millisecond for each time that the row is read.
        """
        num_rows = self._sources[source].rows[seq_len][0]
        if not 0 <= row < num_rows:
            raise IndexError(f"row {row} of '{self.source_names[source]}' is outside 0 to {num_rows - 1}")
        found = []
        for number, (stage, members) in enumerate(zip(self.stages, self._members, strict=True)):
            if stage.seq_len != seq_len or source not in members:
                continue
            member = members.index(source)
            first = int(self._bases[number][source])
            end = first + int(self._quotas[number].counts(stage.num_samples)[member])
            for epoch in range(first // num_rows, -(-end // num_rows)):
                local = int(self._permutation(source, seq_len, epoch).inverse([row])[0])
                if first <= (index := epoch * num_rows + local) < end:
                    n = self.stage_starts[number] + self._quotas[number].place(member, index - first)
                    found.append((n, epoch))
        return found

    def _stage_parts(self, n: int) -> list[tuple[int, int]]:
        """(stage, samples of it) for each stage that the first n samples touch; IndexError outside the plan."""
        if not 0 <= n <= self.num_samples:
            raise IndexError(f"sample {n} is outside 0 to {self.num_samples}")
        ends = zip(self.stage_starts, self.stages, strict=False)
        return [(i, min(n - start, stage.num_samples)) for i, (start, stage) in enumerate(ends) if n > start]

    def counts(self, n: int) -> np.ndarray:
        """Samples of each source among the first n, over all stages: int64 [source], summing to n."""
        total = np.zeros(len(self._sources), dtype=np.int64)
        for stage, part in self._stage_parts(n):
            total[self._members[stage]] += self._quotas[stage].counts(part)
        return total

    def planned_samples(self, n: int) -> np.ndarray:
        """What the shares ask for among the first n samples: float64 [source], in samples."""
        total = np.zeros(len(self._sources))
        for stage, part in self._stage_parts(n):
            total[self._members[stage]] += self._quotas[stage].targets(part)
        return total

    def planned_tokens(self, n: int) -> dict[str, float]:
        """Source -> tokens that the shares ask for among the first n samples (target samples x mean row)."""
        return self._in_tokens(n, [quotas.targets for quotas in self._quotas])

    def counted_tokens(self, n: int) -> dict[str, float]:
        """Source -> tokens of its first counts(n) samples at its mean row; exact where all its rows are full."""
        return self._in_tokens(n, [quotas.counts for quotas in self._quotas])

    def _in_tokens(self, n: int, functions: list[Any]) -> dict[str, float]:
        total = dict.fromkeys(self.source_names, 0.0)
        for stage, part in self._stage_parts(n):
            for source, samples in zip(self._members[stage], functions[stage](part), strict=True):
                num_rows, num_tokens = self._sources[source].rows[self.stages[stage].seq_len]
                total[self.source_names[source]] += float(samples) * num_tokens / max(1, num_rows)
        return total

    def epochs(self, n: int) -> dict[str, dict[int, float]]:
        """Source -> seq_len -> how often its rows of that length were read among the first n samples."""
        result: dict[str, dict[int, float]] = {name: {} for name in self.source_names}
        for stage, part in self._stage_parts(n):
            seq_len = self.stages[stage].seq_len
            for source, samples in zip(self._members[stage], self._quotas[stage].counts(part), strict=True):
                lengths = result[self.source_names[source]]
                num_rows = max(1, self._sources[source].rows[seq_len][0])
                lengths[seq_len] = lengths.get(seq_len, 0.0) + int(samples) / num_rows
        return result

    def error_bound(self, stage: int) -> float:
        """Largest |count - target| of any source within a stage, in samples."""
        return self._quotas[stage].error_bound

    @cached_property
    def _identity(self) -> dict[str, Any]:
        used = {name for stage in self.stages for name in stage.mixture}
        changes: dict[str, Any] = {}
        if self.ledger:
            changes["ledger"] = [entry.effect for entry in self.ledger]
        if self.caps:
            changes["caps"] = {name: asdict(cap) for name, cap in self.caps.items()}
        if self.window_shards:
            changes["shuffle_window_shards"] = self.window_shards
        return {
            "version": ORDER_VERSION,
            "seed": self.seed,
            "sources": {source.name: source.fingerprint for source in self._sources if source.name in used},
            "stages": [stage.identity() for stage in self.stages],
            **changes,
        }

    @property
    def fingerprint(self) -> str:
        """xxh3-128 (hex) of all that the order depends on."""
        return fingerprint(self._identity)

    def state(self, n: int) -> dict[str, Any]:
        """What a checkpoint keeps: n and the plan that it counts in, about 1 kB of JSON, the same on every rank."""
        capped = {"capped": self._capped_before(n)} if self.caps else {}
        return {**self._identity, **capped, "n": n}

    def _capped_before(self, n: int) -> list[dict[str, Any]]:
        """The caps that act on the first n samples."""
        return [{**asdict(bound), **asdict(self.caps[bound.source])} for bound in self.capped if bound.n < n]

    def check(self, state: dict[str, Any]) -> int:
        """The n of a saved state whose plan is this one, or this one without its last stages and ledger entries.

        A cap may have been changed where neither the old nor the new one acts on the samples before n.
        Raises UserError that names each thing that differs: under another plan n would mean another sample.
        """
        if state.get("version") != ORDER_VERSION:
            raise UserError(
                f"sample order: the checkpoint has version {state.get('version')}, this program {ORDER_VERSION}; "
                "go on with the version of cpt_dist that wrote it"
            )
        problems = []
        if state["seed"] != self.seed:
            problems.append(f"seed was {state['seed']} and is {self.seed}; set it back to resume")
        window = state.get("shuffle_window_shards", 0)
        if window != self.window_shards:
            problems.append(
                f"data.shuffle_window_shards was {window} and is {self.window_shards}; set it back to resume"
            )
        present = {source.name: source.fingerprint for source in self._sources}
        for name, saved in state["sources"].items():
            if name not in present:
                problems.append(f"source '{name}' is missing; the run has read from it, so add it again")
            elif present[name] != saved:
                problems.append(
                    f"source '{name}' was {saved} and is {present[name]}: its shards were made again; "
                    "restore the old ones, or start a new run_dir"
                )
        for number, saved in enumerate(state["stages"]):
            now = self.stages[number].identity() if number < len(self.stages) else None
            problems += stage_differences(saved, now)
        n = int(state["n"])
        problems += ledger_differences(state.get("ledger", []), [entry.effect for entry in self.ledger], n)
        was_capped, is_capped = (
            {one["source"]: one for one in c} for c in (state.get("capped", []), self._capped_before(n))
        )
        for name in sorted({*was_capped, *is_capped}):
            if not problems and was_capped.get(name) != is_capped.get(name):
                was, now_is = (_cap_in_words(capped.get(name)) for capped in (was_capped, is_capped))
                problems.append(
                    f"data.sources.{name}.max_epochs: the source {was}, and now {now_is}; set it back to resume"
                )
        if problems:
            raise UserError(problems)
        return n


def _cap_in_words(capped: dict[str, Any] | None) -> str:
    if capped is None:
        return "was not capped before the checkpoint"
    return f"was capped at sample {capped['n']} ({capped['max_epochs']:g} epochs, {capped['policy']})"
