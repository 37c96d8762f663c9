"""What the teacher of a distillation costs a run: tokens that it reads, FLOPs and weights.

It follows from the mixture over time and the headers of the files of weights; no weight is read.
"""

from __future__ import annotations

from typing import Any

from cpt_dist.config import CptConfig
from cpt_dist.distillation_config import ALL_TOKENS
from cpt_dist.errors import UserError
from cpt_dist.forgetting_config import REPLAY_ROLE
from cpt_dist.model.folder import num_weights

FORWARD_SHARE = 1 / 3
"""FLOPs of a forward pass over those of forward and backward (2 of 6 per weight and token)."""


def plan_distillation(config: CptConfig, stages: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Cost of the teacher over the plan's `stages`; None without one. What can't be known here is None in it."""
    if config.distillation is None:
        return None
    folder = config.distillation.teacher or config.model.path
    share, theirs, ours = _share_of_tokens(config, stages), _weights(folder), _weights(config.model.path)
    ratio = 1.0 if folder == config.model.path else theirs / ours if theirs and ours else None
    return {
        "teacher": folder,
        "weight": config.distillation.weight,
        "tokens": config.distillation.tokens,
        "share_of_tokens": share,
        "extra_flops": share * ratio * FORWARD_SHARE if share is not None and ratio is not None else None,
        "teacher_weights": theirs,
    }


def _share_of_tokens(config: CptConfig, stages: list[dict[str, Any]]) -> float | None:
    """Share of the run's tokens that the teacher reads, as far as the shares of sources say."""
    assert config.distillation is not None
    if config.distillation.tokens == ALL_TOKENS:
        return 1.0
    if not stages or not all(stage.get("timeline") for stage in stages):
        return None
    replay = {name for name, source in config.data.sources.items() if source.role == REPLAY_ROLE}
    read = 0.0
    for stage in stages:
        for point in stage["timeline"]:
            first, last = point["steps"]
            share = sum(value for name, value in point["shares"].items() if name in replay)
            read += share * (last - first + 1) * stage["batch_tokens"]
    return read / sum(stage["tokens"] for stage in stages)


def _weights(folder: str) -> int | None:
    try:
        return num_weights(folder) or None
    except UserError:
        return None
