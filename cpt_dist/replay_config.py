"""The schema of adaptive replay, and the checks that need nothing but its values.

It is a part of `cpt_dist.config` in a file of its own; `cpt_dist/retention/replay_controller.py` says what the values
do.
"""

from __future__ import annotations

from dataclasses import dataclass

from cpt_dist.errors import nearest

REPLAY_RULES = ("off", "bounded", "exponential")


@dataclass
class ReplayConfig:
    """Moving the joint share of the replay sources by what held-out text of theirs shows."""

    rule: str = "off"
    """off, bounded (steps inside bounds, with hysteresis) or exponential (the update of DoReMi and Sheared LLaMA)."""
    low: float = 0.05
    """Smallest joint share of the replay sources."""
    high: float = 0.5
    """Largest joint share of the replay sources."""
    tolerance: float = 0.01
    """Accepted rise of a replay source's held-out bits per byte over the start, as a part of it. The share rises when
    the whole interval of a source's rise lies above."""
    hysteresis: float = 0.5
    """The share falls when the intervals of all replay sources lie below this part of `tolerance`."""
    max_step: float = 0.05
    """Largest change of the joint share in one decision."""
    dwell_steps: int = 100
    """Optimizer steps between two decisions, at least."""
    effect_steps: int = 2
    """Optimizer steps between a decision and its effect."""
    rate: float = 10.0
    """exponential: weights are multiplied by exp(rate x relative rise)."""
    uniform: float = 0.0001
    """exponential: part of the weights that is spread evenly over the sources (DoReMi's smoothing)."""


def replay_problems(replay: ReplayConfig, evaluations: bool) -> list[str]:
    """What is wrong with `replay`; `evaluations` says whether held-out text is scored while training."""
    problems = []
    if replay.rule not in REPLAY_RULES:
        problems.append(f"replay.rule: '{replay.rule}' is unknown; {nearest(replay.rule, REPLAY_RULES)}")
    elif replay.rule != "off" and not evaluations:
        problems.append(
            f"replay.rule: '{replay.rule}' decides on evaluations inside training; "
            "set evaluation.during_training=true and evaluation.every_steps above 0, or evaluation.schedule=log"
        )
    if not 0 < replay.low < replay.high < 1:
        problems.append(f"replay.low {replay.low} and replay.high {replay.high} must rise between 0 and 1")
    for name in ("tolerance", "max_step", "rate"):
        if not getattr(replay, name) > 0:
            problems.append(f"replay.{name}: {getattr(replay, name)} must be positive")
    for name in ("hysteresis", "uniform"):
        if not 0 <= getattr(replay, name) < 1:
            problems.append(f"replay.{name}: {getattr(replay, name)} must lie within 0 to 1 (exclusive)")
    for name, least in (("dwell_steps", 0), ("effect_steps", 1)):
        if getattr(replay, name) < least:
            problems.append(f"replay.{name}: {getattr(replay, name)} must be at least {least}")
    return problems
