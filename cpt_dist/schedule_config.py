"""The schema of a learning-rate schedule, and the checks that need nothing but its values.

It is a part of `cpt_dist.config` in a file of its own. The curves are in `cpt_dist/schedules.py`; nothing is
computed here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cpt_dist.errors import nearest_of

SCHEDULES: dict[str, tuple[str, ...]] = {
    "constant": (),
    "linear": ("min_lr_ratio",),
    "linear_to_zero": (),
    "cosine": ("min_lr_ratio",),
    "cosine_restarts": ("min_lr_ratio", "cycles"),
    "wsd": ("min_lr_ratio", "decay", "decay_shape"),
    "infinite": ("min_lr_ratio", "decay", "decay_shape", "cooldown", "constant_lr_ratio"),
    "inverse_sqrt": ("decay", "decay_shape", "min_lr_ratio"),
}
"""Name of each schedule -> the fields that it reads besides peak_lr, start_lr_ratio and warmup, which all do."""

DECAY_SHAPES = ("linear", "1-sqrt", "exponential")


@dataclass
class ScheduleConfig:
    name: str = "wsd"
    """constant, linear, linear_to_zero (from where the stage before ended, without warm-up; a first stage: from
    peak_lr), cosine, cosine_restarts, wsd (warm-up, stable, decay), infinite (warm-up, cool-down, constant, anneal) or
    inverse_sqrt."""
    peak_lr: float | None = 3e-5
    """Learning rate at the end of warm-up; null: where the stage before ended. Unknown base: 3e-5 up to 8B parameters,
    1e-5 above, then a pilot."""
    start_lr_ratio: float | None = 0.0
    """Learning rate at the beginning of the warm-up, as a share of the peak; null: where the stage before ended."""
    min_lr_ratio: float = 0.1
    """Learning rate at the end, as a share of the peak."""
    warmup: float = 0.01
    """Share of the stage's tokens over which the learning rate rises to the peak; cosine_restarts: of each cycle."""
    decay: float = 0.2
    """wsd, infinite, inverse_sqrt: share of the stage's tokens at its end over which the learning rate falls to the
    minimum (MiniCPM, arXiv 2404.06395)."""
    decay_shape: str = "1-sqrt"
    """Shape of that fall: linear, 1-sqrt (Hägele et al., arXiv 2405.18392) or exponential."""
    cycles: int = 1
    """cosine_restarts: how many times the learning rate rises to the peak and falls, over equal parts of the stage."""
    cooldown: float = 0.3
    """infinite: share of the stage's tokens, after the warm-up, over which half a cosine leads to the constant."""
    covers: float = 1.0
    """Share of the curve that the stage goes through: a stage that a fork cut keeps the rates of its whole length."""
    constant_lr_ratio: float = 0.5
    """infinite: the constant learning rate, as a share of the peak (Ibrahim et al., arXiv 2403.08763, section 6)."""


def schedule_problems(schedule: ScheduleConfig) -> list[str]:
    """What is wrong with `schedule`, whatever stage it is of; each problem begins with the name of the field."""
    if schedule.name not in SCHEDULES:
        return [f"name: '{schedule.name}' is unknown; {nearest_of(schedule.name, SCHEDULES)}"]
    reads = SCHEDULES[schedule.name]
    problems = []
    if schedule.decay_shape not in DECAY_SHAPES:
        problems.append(
            f"decay_shape: '{schedule.decay_shape}' is unknown; {nearest_of(schedule.decay_shape, DECAY_SHAPES)}"
        )
    if schedule.peak_lr is not None and not 0 < schedule.peak_lr < math.inf:
        problems.append(f"peak_lr: {schedule.peak_lr} must be positive")
    for name in ("start_lr_ratio", "min_lr_ratio", "warmup", "decay", "cooldown", "constant_lr_ratio"):
        value = getattr(schedule, name)
        if value is not None and not 0 <= value <= 1:
            why = "; a learning rate never rises past its peak" if name.endswith("ratio") and value > 1 else ""
            problems.append(f"{name}: {value} must lie within 0 to 1{why}")
    if not 0 < schedule.covers <= 1:
        problems.append(f"covers: {schedule.covers} must lie above 0 and be at most 1")
    if schedule.cycles < 1:
        problems.append(f"cycles: {schedule.cycles} must be at least 1")
    parts = ["warmup", *(name for name in ("cooldown", "decay") if name in reads)]
    values = [getattr(schedule, name) for name in parts]
    if sum(values) > 1 + 1e-12:
        said = " + ".join(f"{name} {value:g}" for name, value in zip(parts, values, strict=True))
        problems.append(f"{said} exceed 1; lower one of them")
    if "decay_shape" in reads and schedule.decay_shape == "exponential" and schedule.min_lr_ratio == 0:
        problems.append("min_lr_ratio: 0 is never reached exponentially; give a positive share such as 0.01")
    if schedule.name == "infinite" and schedule.min_lr_ratio > schedule.constant_lr_ratio:
        problems.append(
            f"min_lr_ratio: {schedule.min_lr_ratio} is above constant_lr_ratio {schedule.constant_lr_ratio}; lower it"
        )
    if schedule.name == "infinite" and schedule.cooldown == 0 and schedule.constant_lr_ratio < 1:
        problems.append("cooldown: 0 would make a jump from the peak to constant_lr_ratio; give it a positive share")
    if schedule.name == "inverse_sqrt" and schedule.warmup == 0:
        problems.append("warmup: inverse_sqrt falls as the root of warmup / progress; give it a positive share")
    return problems
