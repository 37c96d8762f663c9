"""The sample order: a pure function from a sample's global index n to the row of the source that it reads.

It depends on the stages, the seed and the sources' fingerprints, and on nothing else: not on world size, micro-batch,
worker count, engine or what was read before, so a run goes on at any n without replay. It holds no tokens and opens
no file. That the state is the same on every rank and is checked by fingerprint is what OLMo-core's loader does best.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from cpt_dist.config import CONCAT, StageConfig, mixture_knots, parse_quantity
from cpt_dist.data.mixture import Quotas
from cpt_dist.data.permutation import Permutation, derive_key
from cpt_dist.data.plans import PackKey, pack_key, pack_plan
from cpt_dist.errors import UserError, nearest
from cpt_dist.files import fingerprint

ORDER_VERSION = 1
"""Raised by any change after which some n reads another row."""

_KEPT_PERMUTATIONS = 256


@dataclass(frozen=True)
class StagePlan:
    """What of a stage the sample order depends on; counts are of samples (rows)."""

    name: str
    num_samples: int
    seq_len: int
    batch_samples: int
    mixture: dict[str, Any]
    packing: str = CONCAT

    @classmethod
    def from_config(cls, stage: StageConfig, packing: str = CONCAT) -> StagePlan:
        """The plan of a validated stage: its tokens rounded up to whole steps; `packing` where it has none itself."""
        batch_tokens = parse_quantity(stage.batch_tokens, f"stage '{stage.name}' batch_tokens")
        num_steps = -(-parse_quantity(stage.tokens, f"stage '{stage.name}' tokens") // batch_tokens)
        batch_samples = batch_tokens // stage.seq_len
        return cls(
            stage.name,
            num_steps * batch_samples,
            stage.seq_len,
            batch_samples,
            dict(stage.mixture),
            stage.packing or packing,
        )

    @property
    def rows_key(self) -> PackKey:
        """Names the set of rows that the stage reads of each source."""
        return pack_key(self.packing, self.seq_len)

    def identity(self) -> dict[str, Any]:
        """What the order depends on, as JSON; the packing only where it isn't the one that was once the only one."""
        values = asdict(self)
        if values.pop("packing") != CONCAT:
            values["packing"] = self.rows_key
        return values

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the stage."""
        return self.num_samples // self.batch_samples

    def check_world_size(self, world_size: int) -> None:
        """Raise UserError where a batch has fewer rows than there are ranks to share it."""
        if world_size > self.batch_samples:
            raise UserError(
                f"stage '{self.name}': a batch of {self.batch_samples * self.seq_len} tokens is {self.batch_samples} "
                f"rows of {self.seq_len}, too few for {world_size} ranks; start at most {self.batch_samples} ranks, or "
                f"set batch_tokens to {world_size * self.seq_len} or more"
            )


@dataclass(frozen=True)
class SourceRows:
    """A source as the order sees it: `rows` is `StagePlan.rows_key` -> (number of rows, tokens in them)."""

    name: str
    fingerprint: str
    rows: Mapping[PackKey, tuple[int, int]] = field(default_factory=dict)


class ShardedSource(Protocol):
    """The part of `cpt_dist.data.shards.Source` that a plan of rows is made from."""

    name: str
    fingerprint: str
    shard_tokens: np.ndarray

    def doc_offsets(self, shard: int) -> np.ndarray:
        """uint64 [num_documents + 1]."""


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
    over; another seq_len is another set of rows, counted from 0. Raises UserError with every unknown or empty source.
    """

    def __init__(self, stages: Sequence[StagePlan], sources: Sequence[SourceRows], seed: int) -> None:
        self.stages = list(stages)
        self.seed = seed
        self.source_names = [source.name for source in sources]
        self._sources = list(sources)
        self._permutations: dict[tuple[int, PackKey, int], Permutation] = {}
        index = {name: number for number, name in enumerate(self.source_names)}
        self._check_sources(index)
        self._members = [[index[name] for name in sorted(stage.mixture)] for stage in self.stages]
        self._quotas = [self._stage_quotas(stage) for stage in self.stages]
        self.stage_starts = [0]
        """First sample of each stage, and the number of all samples at the end."""
        self._bases: list[np.ndarray] = []  # samples of each source before the stage, at its seq_len
        so_far = {stage.rows_key: np.zeros(len(sources), dtype=np.int64) for stage in self.stages}
        for stage, members, quotas in zip(self.stages, self._members, self._quotas, strict=True):
            self.stage_starts.append(self.stage_starts[-1] + stage.num_samples)
            self._bases.append(so_far[stage.rows_key].copy())
            so_far[stage.rows_key][members] += quotas.counts(stage.num_samples)

    @classmethod
    def from_sources(
        cls,
        stages: Sequence[StageConfig],
        sources: Sequence[ShardedSource],
        seed: int,
        packing: str = CONCAT,
        cache_plans: bool = False,
    ) -> SampleOrder:
        """The order of validated stages over opened sources; `packing` and `cache_plans` as in `DataConfig`."""
        plans = [StagePlan.from_config(stage, packing) for stage in stages]
        rows = []
        for source in sources:
            packs = {plan.rows_key: pack_plan(source, plan.packing, plan.seq_len, cache_plans) for plan in plans}
            table = {key: (pack.num_rows, pack.num_tokens) for key, pack in packs.items()}
            rows.append(SourceRows(source.name, source.fingerprint, table))
        return cls(plans, rows, seed)

    def _check_sources(self, index: dict[str, int]) -> None:
        problems = []
        for stage in self.stages:
            shares = dict(zip(stage.mixture, zip(*mixture_knots(stage.mixture)[1], strict=True), strict=True))
            for name in sorted(stage.mixture):
                if name not in index:
                    problems.append(f"stage '{stage.name}': source '{name}' is unknown; {nearest(name, index)}")
                elif max(shares[name]) > 0 and self._sources[index[name]].rows[stage.rows_key][0] == 0:
                    problems.append(
                        f"stage '{stage.name}': source '{name}' has no rows but a share of {max(shares[name]):.4g}; "
                        "give it text and run launch/prepare.py, or set its share to 0"
                    )
        if problems:
            raise UserError(problems)

    def _stage_quotas(self, stage: StagePlan) -> Quotas:
        """Shares are of tokens; a sample of a source counts with its mean tokens a row, so divide by that."""
        progress, shares = mixture_knots({name: stage.mixture[name] for name in sorted(stage.mixture)})
        if progress[-1] < 1:
            progress, shares = [*progress, 1.0], [*shares, shares[-1]]
        knots = [int(Fraction(at) * stage.num_samples + Fraction(1, 2)) for at in progress]
        rows = {source.name: source.rows[stage.rows_key] for source in self._sources if source.name in stage.mixture}
        per_token = [Fraction(rows[name][0], max(1, rows[name][1])) for name in sorted(stage.mixture)]
        weights = [[Fraction(share) * rate for share, rate in zip(row, per_token, strict=True)] for row in shares]
        return Quotas(knots, weights)

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
        key = self.stages[stage].rows_key
        for member, index, places in self._quotas[stage].split(first, num):
            source = self._members[stage][member]
            num_rows = self._sources[source].rows[key][0]
            start = int(self._bases[stage][source]) + index
            places = places + offset
            result.source[places] = source
            done = 0
            while done < places.size:
                epoch, local = divmod(start + done, num_rows)
                part = places[done : done + num_rows - local]
                permutation = self._permutation(source, key, epoch)
                result.row[part] = permutation(np.arange(local, local + part.size, dtype=np.int64))
                result.epoch[part] = epoch
                done += part.size

    def _permutation(self, source: int, rows_key: PackKey, epoch: int) -> Permutation:
        key = (source, rows_key, epoch)
        if key not in self._permutations:
            if len(self._permutations) >= _KEPT_PERMUTATIONS:
                self._permutations.clear()
            name, num_rows = self._sources[source].name, self._sources[source].rows[rows_key][0]
            generation = 0  # a source that grows gets a further generation of rows; its old rows keep their order
            self._permutations[key] = Permutation(
                num_rows, derive_key("rows", self.seed, name, rows_key, generation, epoch)
            )
        return self._permutations[key]

    def sample(self, n: int) -> tuple[str, int, int]:
        """Source name, row and epoch of sample n."""
        one = self.samples(n, 1)
        return self.source_names[int(one.source[0])], int(one.row[0]), int(one.epoch[0])

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
                num_rows, num_tokens = self._sources[source].rows[self.stages[stage].rows_key]
                total[self.source_names[source]] += float(samples) * num_tokens / max(1, num_rows)
        return total

    def epochs(self, n: int) -> dict[str, dict[PackKey, float]]:
        """Source -> `StagePlan.rows_key` -> how often those rows of it were read among the first n samples."""
        result: dict[str, dict[PackKey, float]] = {name: {} for name in self.source_names}
        for stage, part in self._stage_parts(n):
            key = self.stages[stage].rows_key
            for source, samples in zip(self._members[stage], self._quotas[stage].counts(part), strict=True):
                lengths = result[self.source_names[source]]
                num_rows = max(1, self._sources[source].rows[key][0])
                lengths[key] = lengths.get(key, 0.0) + int(samples) / num_rows
        return result

    def error_bound(self, stage: int) -> float:
        """Largest |count - target| of any source within a stage, in samples."""
        return self._quotas[stage].error_bound

    @cached_property
    def _identity(self) -> dict[str, Any]:
        used = {name for stage in self.stages for name in stage.mixture}
        return {
            "version": ORDER_VERSION,
            "seed": self.seed,
            "sources": {source.name: source.fingerprint for source in self._sources if source.name in used},
            "stages": [stage.identity() for stage in self.stages],
        }

    @property
    def fingerprint(self) -> str:
        """xxh3-128 (hex) of all that the order depends on."""
        return fingerprint(self._identity)

    def state(self, n: int) -> dict[str, Any]:
        """What a checkpoint keeps: n and the plan that it counts in, about 1 kB of JSON, the same on every rank."""
        return {**self._identity, "n": n}

    def check(self, state: dict[str, Any]) -> int:
        """The n of a saved state whose plan is this one, or this one without its last stages.

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
            problems += self._stage_differences(number, saved)
        if problems:
            raise UserError(problems)
        return int(state["n"])

    def _stage_differences(self, number: int, saved: dict[str, Any]) -> list[str]:
        if number >= len(self.stages):
            return [f"stage '{saved['name']}' is missing; only stages after the last may be added, none taken away"]
        now = asdict(self.stages[number])
        name = saved["name"]
        problems = []
        was, now_is = (plan.get("packing", CONCAT) for plan in (saved, self.stages[number].identity()))
        if was != now_is:
            problems.append(f"stage '{name}' packing was {was} and is {now_is}")
        for key, what in (("name", "name"), ("num_samples", "length in samples (tokens)"), ("seq_len", "seq_len")):
            if saved[key] != now[key]:
                problems.append(f"stage '{name}' {what} was {saved[key]} and is {now[key]}")
        if saved["batch_samples"] != now["batch_samples"]:
            was, now_is = (plan["batch_samples"] * plan["seq_len"] for plan in (saved, now))
            problems.append(f"stage '{name}' batch_tokens was {was} and is {now_is}")
        for source in sorted({*saved["mixture"], *now["mixture"]}):
            was, now_is = (_plain(plan["mixture"].get(source)) for plan in (saved, now))
            if was != now_is:
                problems.append(f"stage '{name}' share of source '{source}' was {was} and is {now_is}")
        return [f"{problem}; set it back to resume, and put changes into a new last stage" for problem in problems]


def _plain(share: Any) -> Any:
    """A share as JSON gives it back (tuples become lists), so that a saved one compares equal."""
    return [list(point) for point in share] if isinstance(share, (list, tuple)) else share
