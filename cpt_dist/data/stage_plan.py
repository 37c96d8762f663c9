"""What the sample order is made from: the plan of a stage and the rows of a source, and how two plans differ.

Plain values, from the configuration and the opened sources; the order itself is in `order.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from cpt_dist.config import CONCAT, RESTART, StageConfig, parse_quantity
from cpt_dist.curriculum_config import CURRICULA, CurriculumConfig
from cpt_dist.data.curricula import scheduled_mixture
from cpt_dist.data.plans import RowsKey, rows_key
from cpt_dist.data.stage_counts import Knots
from cpt_dist.errors import UserError
from cpt_dist.mixture_knots import mixture_knots


@dataclass(frozen=True)
class StagePlan:
    """What of a stage the sample order depends on; counts are of samples (rows)."""

    name: str
    num_samples: int
    seq_len: int
    batch_samples: int
    mixture: dict[str, Any]
    curriculum: dict[str, Any] | None = None
    """Name and parameters of the curriculum that moves the shares; None: the mixture as it stands."""
    packing: str = CONCAT
    """How documents become rows (`config.PACKINGS`)."""
    positions: str = RESTART
    """Where position ids begin anew (`config.POSITIONS`); no row hangs on it, but what a sample means does."""

    @classmethod
    def from_config(cls, stage: StageConfig) -> StagePlan:
        """The plan of a validated stage: its tokens rounded up to whole optimizer steps."""
        batch_tokens = parse_quantity(stage.batch_tokens, f"stage '{stage.name}' batch_tokens")
        num_steps = -(-parse_quantity(stage.tokens or "", f"stage '{stage.name}' tokens") // batch_tokens)
        batch_samples = batch_tokens // stage.seq_len
        curriculum = None
        if stage.curriculum is not None:
            read = ("name", *CURRICULA[stage.curriculum.name])
            curriculum = {name: getattr(stage.curriculum, name) for name in read}
        plan = (stage.name, num_steps * batch_samples, stage.seq_len, batch_samples, dict(stage.mixture))
        return cls(*plan, curriculum=curriculum, packing=stage.packing, positions=stage.positions)

    @property
    def rows_key(self) -> RowsKey:
        """Which rows of its sources the stage reads (`SourceRows.rows`)."""
        return rows_key(self.seq_len, self.packing)

    def knots(self) -> Knots:
        """Progress values and normalised shares there, [knot][source], sources by name."""
        mixture = {name: self.mixture[name] for name in sorted(self.mixture)}
        curriculum = CurriculumConfig(**self.curriculum) if self.curriculum is not None else None
        return mixture_knots(scheduled_mixture(mixture, curriculum))

    def identity(self) -> dict[str, Any]:
        """What a saved state keeps of the stage: the fields that are not None; packing and positions if not default."""
        given = {key: value for key, value in asdict(self).items() if value is not None}
        kept = {key: value for key, value in given.items() if key not in ("packing", "positions")}
        if self.packing != CONCAT:
            kept["packing"] = str(self.rows_key).partition(":")[0]
        return kept if self.positions == RESTART else {**kept, "positions": self.positions}

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the stage."""
        return self.num_samples // self.batch_samples

    def check_world_size(self, world_size: int, context_parallel: int = 1) -> None:
        """Raise UserError where a batch has fewer rows than there are ranks, `context_parallel` of them to a row."""
        most = self.batch_samples * context_parallel
        if world_size > most:
            even = [most // size for size in range(1, self.batch_samples + 1) if self.batch_samples % size == 0][:3]
            shared = f" of which {context_parallel} share a row" if context_parallel > 1 else ""
            enough = -(-world_size // context_parallel) * self.seq_len
            raise UserError(
                f"stage '{self.name}': a batch of {self.batch_samples * self.seq_len} tokens is {self.batch_samples} "
                f"rows of {self.seq_len}, too few for {world_size} ranks{shared}; start at most {most} ranks "
                f"({', '.join(map(str, even))} share them evenly), or set batch_tokens to {enough} or more"
            )


@dataclass(frozen=True)
class SourceRows:
    """A source as the order sees it: `rows` is `StagePlan.rows_key` -> (number of rows, tokens in them).

    `shard_rows` is the same key -> int64 [num_shards], the rows in each shard; only a windowed order reads it.
    """

    name: str
    fingerprint: str
    rows: Mapping[RowsKey, tuple[int, int]] = field(default_factory=dict)
    shard_rows: Mapping[RowsKey, np.ndarray] = field(default_factory=dict)


def stage_differences(saved: dict[str, Any], now: dict[str, Any] | None) -> list[str]:
    """A line for each thing in which a saved stage's `identity` differs from what the stage is now (None: gone)."""
    if now is None:
        return [f"stage '{saved['name']}' is missing; only stages after the last may be added, none taken away"]
    name = saved["name"]
    problems = []
    for key, what in (("name", "name"), ("num_samples", "length in samples (tokens)"), ("seq_len", "seq_len")):
        if saved[key] != now[key]:
            problems.append(f"stage '{name}' {what} was {saved[key]} and is {now[key]}")
    for key, default in (("packing", CONCAT), ("positions", RESTART)):
        was, now_is = (plan.get(key, default) for plan in (saved, now))
        if was != now_is:
            problems.append(f"stage '{name}' {key} was {was} and is {now_is}")
    if saved["batch_samples"] != now["batch_samples"]:
        was, now_is = (plan["batch_samples"] * plan["seq_len"] for plan in (saved, now))
        problems.append(f"stage '{name}' batch_tokens was {was} and is {now_is}")
    for source in sorted({*saved["mixture"], *now["mixture"]}):
        was, now_is = (_plain(plan["mixture"].get(source)) for plan in (saved, now))
        if was != now_is:
            problems.append(f"stage '{name}' share of source '{source}' was {was} and is {now_is}")
    was, now_is = (plan.get("curriculum") or {"name": None} for plan in (saved, now))
    for key in ["name"] if was["name"] != now_is["name"] else sorted(was):
        if _plain(was[key]) != _plain(now_is[key]):
            problems.append(f"stage '{name}' curriculum.{key} was {was[key]} and is {now_is[key]}")
    return [f"{problem}; set it back to resume, and put changes into a new last stage" for problem in problems]


def _plain(share: Any) -> Any:
    """A share as JSON gives it back (tuples become lists), so that a saved one compares equal."""
    if isinstance(share, Mapping):
        return {name: _plain(value) for name, value in share.items()}
    return [_plain(point) for point in share] if isinstance(share, (list, tuple)) else share
