"""The sample order: a pure function from a sample's global index n to the row of the source that it reads.

It depends on the stages, the seed and the sources' fingerprints, and on nothing else: not on world size, micro-batch,
worker count, engine or what was read before, so a run goes on at any n without replay. It holds no tokens and opens
no file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from cpt_dist.config import StageConfig
from cpt_dist.data import order_state
from cpt_dist.data.caps import MANY_EPOCHS, BoundCap, Cap, many_epochs_warning
from cpt_dist.data.layout import Layout
from cpt_dist.data.ledger_entry import Entry, LedgerEntry
from cpt_dist.data.order_state import ORDER_VERSION
from cpt_dist.data.packing import RowSource
from cpt_dist.data.plan_counts import PlanCounts
from cpt_dist.data.plans import RowsKey, make_plan
from cpt_dist.data.row_order import RowOrder
from cpt_dist.data.skip import Skip, SkippedSamples, skip_problems
from cpt_dist.data.stage_plan import SourceRows, StagePlan
from cpt_dist.data.take_down import TakeDown, take_down_problems
from cpt_dist.data.view_names import by_source, source_of
from cpt_dist.errors import UserError
from cpt_dist.files import fingerprint

__all__ = ["ORDER_VERSION", "RowsRead", "SampleOrder", "Samples"]


@dataclass(frozen=True)
class Samples:
    """Consecutive samples, int64 [count] each: index into `SampleOrder.source_names`, row of it, and its epoch."""

    source: np.ndarray
    row: np.ndarray
    epoch: np.ndarray


@dataclass(frozen=True)
class RowsRead:
    """Reading of a source's rows of one kind (`StagePlan.rows_key`): `samples` so far, of `num_rows` rows.

    The rows hold `num_tokens` in all, each at most `seq_len`.
    """

    samples: int
    num_rows: int
    num_tokens: int
    seq_len: int

    def bounds(self, total: int) -> tuple[int, int]:
        """The least and the most that the samples hold of what all rows hold `total` of: tokens, or targets.

        Exact after whole epochs; within one, `seq_len` for each row that is read, or is yet to be.
        """
        epochs, rest = divmod(self.samples, max(1, self.num_rows))
        least = max(0, total - (self.num_rows - rest) * self.seq_len) if rest else 0
        return epochs * total + least, epochs * total + min(total, rest * self.seq_len)


class SampleOrder:
    """The order of all samples of all stages, numbered through from 0.

    A stage's sources are taken by name, so neither the order of `sources` nor of a mixture's keys matters. A source's
    samples are counted on from stage to stage where seq_len and packing are the same, so no row comes twice before its
    epoch is over; others are another set of rows, counted from 0. A `ledger` changes shares from its entries' samples
    on, `caps` (source -> cap) where a source has been read often enough; neither changes a sample before that. With
    `window_shards` rows are drawn from that many shards of a source at a time, with 0 from all. Raises UserError with
    every unknown or empty source, wrong entry, and cap of policy error that binds.
    """

    def __init__(
        self,
        stages: Sequence[StagePlan],
        sources: Sequence[SourceRows],
        seed: int,
        ledger: Sequence[Entry] = (),
        caps: Mapping[str, Cap] | None = None,
        window_shards: int = 0,
    ) -> None:
        self.seed, self.window_shards = seed, window_shards
        self.source_names = [source.name for source in sources]
        self._sources = list(sources)
        self.entries = list(ledger)
        """The ledger: entries of all kinds, in the order in which they were decided."""
        self.take_downs = [entry for entry in ledger if isinstance(entry, TakeDown)]
        """Its entries that take documents out of the batches; no sample reads another row because of them."""
        self.skips = [entry for entry in ledger if isinstance(entry, Skip)]
        """Its entries that take whole steps out; every other sample stays where it is."""
        self.skipped = SkippedSamples(self.skips)
        self._plan = PlanCounts(stages, sources, [one for one in ledger if isinstance(one, LedgerEntry)], caps)
        self._rows = RowOrder(sources, seed, window_shards)
        self.stages, self.ledger, self.caps = self._plan.stages, self._plan.ledger, self._plan.caps
        self.stage_starts = self._plan.starts
        """First sample of each stage, and the number of all samples at the end."""
        problems = take_down_problems(self.take_downs, self.num_samples)
        if problems := problems + skip_problems(self.skips, self.begins_step, self.num_samples):
            raise UserError(problems)

    @classmethod
    def from_sources(
        cls,
        stages: Sequence[StageConfig],
        sources: Sequence[RowSource],
        seed: int,
        ledger: Sequence[Entry] = (),
        caps: Mapping[str, Cap] | None = None,
        window_shards: int = 0,
    ) -> SampleOrder:
        """The order of validated stages over opened sources, packed by `plans.make_plan`."""
        plans = [StagePlan.from_config(stage) for stage in stages]
        kinds = {plan.rows_key: (plan.seq_len, plan.packing) for plan in plans}
        rows = []
        for source in sources:
            packs = {key: make_plan(source, *kind) for key, kind in kinds.items()}
            table = {key: (pack.num_rows, pack.num_tokens) for key, pack in packs.items()}
            shard_rows = {key: pack.rows_per_shard for key, pack in packs.items()} if window_shards else {}
            rows.append(SourceRows(source.name, source.fingerprint, table, shard_rows))
        return cls(plans, rows, seed, ledger, caps, window_shards)

    def begins_step(self, n: int) -> bool:
        """Whether n is the first sample of an optimizer step."""
        stage = self.stage_of(n)
        return (n - self.stage_starts[stage]) % self.stages[stage].batch_samples == 0

    @property
    def layout(self) -> Layout:
        """Which of the sources are strata or generations of one, and what a mixture means for them."""
        return self._plan.layout

    @property
    def capped(self) -> list[BoundCap]:
        """The caps that bind, in the order in which they do."""
        return self._plan.capped

    def warnings(self) -> list[str]:
        """A line for each source that the whole plan reads more often than repetition is worth."""
        read = self.epochs(self.num_samples)
        epochs = {name: sum(lengths.values()) for name, lengths in read.items()}
        lines = [many_epochs_warning(name, times) for name, times in epochs.items() if times > MANY_EPOCHS]
        return lines + [
            f"stage '{stage.name}': stratum '{name}' came with a later generation and has no share in mixture, so it "
            "is never read; give it one in a further stage"
            for stage in self.stages
            for name in self.layout.unread(stage.mixture)
        ]

    def shares(self, n: int) -> dict[str, float]:
        """Shares of tokens of the stage's sources that hold at sample n, normalised; a step at n is behind it."""
        stage = self.stage_of(n)
        shares = self._plan.of_stage(stage).shares(n - self.stage_starts[stage])
        return dict(zip(self.layout.members(self.stages[stage].mixture), shares, strict=True))

    def source_shares(self, n: int) -> dict[str, float]:
        """`shares` of whole sources, their strata and generations together."""
        return by_source(self.shares(n))

    @property
    def num_samples(self) -> int:
        """Samples of all stages."""
        return self.stage_starts[-1]

    def stage_of(self, n: int) -> int:
        """Index of the stage that sample n belongs to; raises IndexError outside 0 … num_samples-1."""
        return self._plan.stage_of(n)

    def samples(self, n: int, count: int) -> Samples:
        """Samples n … n+count-1; they may span stages. Raises IndexError outside the plan."""
        if count < 0 or not 0 <= n <= n + count <= self.num_samples:
            raise IndexError(f"samples {n} to {n + count} are outside 0 to {self.num_samples}")
        parts = []
        at = n
        while at < n + count:
            stage = self.stage_of(at)
            stop = min(n + count, self.stage_starts[stage + 1])
            member, index = self._plan.of_stage(stage).assign(at - self.stage_starts[stage], stop - at)
            source = self._plan.members[stage].take(member)
            index = index + self._plan.before(stage).take(source)
            parts.append((source, *self._rows.rows(self.stages[stage].rows_key, source, index)))
            at = stop
        if not parts:
            return Samples(*(np.empty(0, dtype=np.int64) for _ in range(3)))
        return Samples(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

    def sample(self, n: int) -> tuple[str, int, int]:
        """Source name, row and epoch of sample n."""
        one = self.samples(n, 1)
        return self.source_names[int(one.source[0])], int(one.row[0]), int(one.epoch[0])

    def readings(self, source: int, key: RowsKey, row: int) -> list[tuple[int, int]]:
        """(n, epoch) of every sample that reads a row, rising in n: the order the other way round, without a scan.

        `source` is an index into `source_names`, `key` a stage's `rows_key`. Costs about a millisecond
        for each time that the row is read.
        """
        num_rows = self._sources[source].rows[key][0]
        if not 0 <= row < num_rows:
            raise IndexError(f"row {row} of '{self.source_names[source]}' is outside 0 to {num_rows - 1}")
        found = []
        for number, (stage, members) in enumerate(zip(self.stages, self._plan.members, strict=True)):
            if stage.rows_key != key or source not in members:
                continue
            member = members.tolist().index(source)
            counts = self._plan.of_stage(number)
            first = int(self._plan.before(number)[source])
            end = first + counts.count_of(member, stage.num_samples)
            for epoch in range(first // num_rows, -(-end // num_rows)):
                index = epoch * num_rows + self._rows.place(source, key, epoch, row)
                if first <= index < end:
                    found.append((self.stage_starts[number] + counts.place(member, index - first), epoch))
        return found

    def counts(self, n: int) -> np.ndarray:
        """Samples of each source among the first n, over all stages: int64 [source], summing to n."""
        return self._plan.counts(n)

    def planned_samples(self, n: int) -> np.ndarray:
        """What the shares ask for among the first n samples: float64 [source], in samples."""
        total = np.zeros(len(self._sources))
        for stage, part in self._plan.parts(n):
            total[self._plan.members[stage]] += self._plan.of_stage(stage).targets(part)
        return total

    def read_counts(self, n: int) -> np.ndarray:
        """`counts(n)` without the samples that the ledger skips."""
        return self.skipped.without(self.counts, n)

    def planned_tokens(self, n: int) -> dict[str, float]:
        """Source -> tokens that the shares ask for among the first n samples (target samples x mean row)."""
        parts = self._plan.parts(n)
        return self._in_tokens([(stage, self._plan.of_stage(stage).targets(part)) for stage, part in parts])

    def counted_tokens(self, n: int) -> dict[str, float]:
        """Source -> tokens of its first counts(n) samples at its mean row; exact where all its rows are full."""
        parts = self._plan.parts(n)
        return self._in_tokens([(stage, self._plan.of_stage(stage).counts(part)) for stage, part in parts])

    def _in_tokens(self, samples_of_stages: Sequence[tuple[int, np.ndarray]]) -> dict[str, float]:
        total = dict.fromkeys(self.source_names, 0.0)
        for stage, samples in samples_of_stages:
            key = self.stages[stage].rows_key
            for source, number in zip(self._plan.members[stage].tolist(), samples, strict=True):
                num_rows, num_tokens = self._sources[source].rows[key]
                total[self.source_names[source]] += float(number) * num_tokens / max(1, num_rows)
        return total

    def tokens_of_full_rows(self, n: int, planned: bool = False) -> np.ndarray:
        """Tokens that the first n samples would have if every row were full: float64 [source].

        `planned`: of the samples that the shares ask for instead of those that are read.
        """
        total = np.zeros(len(self._sources))
        for stage, part in self._plan.parts(n):
            counts = self._plan.of_stage(stage)
            samples = counts.targets(part) if planned else counts.counts(part)
            total[self._plan.members[stage]] += samples * self.stages[stage].seq_len
        return total

    @property
    def epoch_tokens(self) -> list[int]:
        """Tokens in all rows of each source; the same for every packing and length, as none is left out or padded."""
        return [max([0, *(tokens for _, tokens in source.rows.values())]) for source in self._sources]

    def rows_read(self, n: int) -> dict[str, dict[RowsKey, RowsRead]]:
        """Source -> `StagePlan.rows_key` -> what of those rows of it the first n samples are."""
        result: dict[str, dict[RowsKey, RowsRead]] = {name: {} for name in self.source_names}
        for stage, part in self._plan.parts(n):
            key, seq_len = self.stages[stage].rows_key, self.stages[stage].seq_len
            counts = self._plan.of_stage(stage).counts(part)
            for source, samples in zip(self._plan.members[stage].tolist(), counts.tolist(), strict=True):
                kinds = result[self.source_names[source]]
                before = kinds[key].samples if key in kinds else 0
                num_rows, num_tokens = self._sources[source].rows[key]
                kinds[key] = RowsRead(before + samples, num_rows, num_tokens, seq_len)
        return result

    def epochs(self, n: int) -> dict[str, dict[RowsKey, float]]:
        """Source -> `StagePlan.rows_key` -> how often those rows of it were read among the first n samples."""
        return {
            name: {key: read.samples / max(1, read.num_rows) for key, read in kinds.items()}
            for name, kinds in self.rows_read(n).items()
        }

    def source_epochs(self, source: str, n: int) -> dict[str, float]:
        """`StagePlan.rows_key` -> how often the rows of a source, in all its views together, were read so far."""
        views = [number for number, name in enumerate(self.source_names) if source_of(name) == source]
        read: dict[RowsKey, int] = {}
        for stage, part in self._plan.parts(n):
            mine = np.flatnonzero(np.isin(self._plan.members[stage], views))
            key = self.stages[stage].rows_key
            if mine.size:
                read[key] = read.get(key, 0) + int(self._plan.of_stage(stage).counts(part)[mine].sum())
        rows = {key: sum(self._sources[number].rows[key][0] for number in views) for key in read}
        return {str(key): samples / max(1, rows[key]) for key, samples in read.items()}

    def error_bound(self, stage: int) -> float:
        """Largest |count - target| of any source within a stage, in samples."""
        return self._plan.of_stage(stage).error_bound

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All that the order depends on, as JSON values."""
        stages = [stage.identity() for stage in self.stages]
        sources = {source.name: source.fingerprint for source in self._sources}
        ledger = [entry.effect for entry in self.ledger]
        taken = [entry.effect for entry in self.take_downs]
        skips = [skip.effect for skip in self.skips]
        return order_state.identity(self.seed, stages, sources, ledger, self.caps, self.window_shards, taken, skips)

    @property
    def fingerprint(self) -> str:
        """xxh3-128 (hex) of all that the order depends on."""
        return fingerprint(self.identity)

    def state(self, n: int) -> dict[str, Any]:
        """What a checkpoint keeps: n and fingerprints of the plan that it counts in, the same on every rank."""
        return order_state.compact(self.identity, n, self._capped_before(n))

    def _capped_before(self, n: int) -> list[dict[str, Any]]:
        """The caps that act on the first n samples."""
        return [{**asdict(bound), **asdict(self.caps[bound.source])} for bound in self.capped if bound.n < n]

    def check(self, state: Mapping[str, Any], record: Mapping[str, Any] | None = None) -> int:
        """The n of a saved state whose plan is this one, or this one without its last stages and ledger entries.

        A cap may have been changed where neither the old nor the new one acts on the samples before n. `record` is the
        `identity` that was saved beside the state; with it each thing that differs is named, without it each part.
        Raises UserError with them: under another plan n would mean another sample.
        """
        return self._checked(order_state.check_state, state, record)

    def check_past(self, state: Mapping[str, Any], record: Mapping[str, Any] | None) -> int:
        """The n of a saved state of another run, whose first n samples are those of this order.

        `record` is the identity in the other run's directory. Raises UserError with each thing of the past that
        differs.
        """
        return self._checked(order_state.check_past, state, record)

    def _checked(
        self,
        check: Callable[..., int],
        state: Mapping[str, Any],
        record: Mapping[str, Any] | None,
    ) -> int:
        present = {source.name: source.fingerprint for source in self._sources}
        capped = self._capped_before(int(state.get("n", 0)))
        return check(state, self.identity, present, capped, record)
