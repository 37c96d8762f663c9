"""The schema of distillation, and the checks that need nothing but its values.

It is a part of `cpt_dist.config` in a file of its own. Which tokens of a batch are distilled is in
`cpt_dist/training/distillation.py`, how the teacher is spread over ranks in `cpt_dist/engine/teacher.py`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from cpt_dist.forgetting_config import REPLAY_ROLE

REPLAY_TOKENS, ALL_TOKENS = "replay", "all"
DISTILLED_TOKENS = (REPLAY_TOKENS, ALL_TOKENS)


@dataclass
class DistillationConfig:
    """A frozen teacher whose distribution of the next token the model is held to (docs/training.md)."""

    weight: float = 1.0
    """Factor of temperature² x the mean over the step's distilled tokens of KL(teacher ‖ model), which is added to the
    loss."""
    temperature: float = 1.0
    """Logits of both models are divided by it; above 1 the unlikely words count for more."""
    tokens: str = REPLAY_TOKENS
    """Which predicted tokens are distilled: replay (those of sources with role replay) or all."""
    teacher: str | None = None
    """Folder of the teacher, of the same tokenizer and vocabulary; null: model.path, the base model itself."""


def distillation_problems(
    distillation: DistillationConfig | None, roles: Mapping[str, str], read: Collection[str]
) -> list[str]:
    """What is wrong with it, one line each; `roles` are those of all sources, `read` those that some stage reads."""
    if distillation is None:
        return []
    problems = []
    if not 0 < distillation.weight < math.inf:
        problems.append(
            f"distillation.weight: {distillation.weight} must be positive and finite; distillation=null turns it off"
        )
    if not 0 < distillation.temperature < math.inf:
        problems.append(
            f"distillation.temperature: {distillation.temperature} must be positive and finite, such as 1 or 2"
        )
    if distillation.tokens not in DISTILLED_TOKENS:
        problems.append(f"distillation.tokens: '{distillation.tokens}' is unknown; it is replay or all")
    elif distillation.tokens == REPLAY_TOKENS and read and REPLAY_ROLE not in {roles.get(name) for name in read}:
        problems.append(
            "distillation.tokens: no stage reads a source with role replay, so nothing would be distilled; add one, or "
            "set it to all"
        )
    return problems
