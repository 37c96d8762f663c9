"""Learning rates as closed forms of progress.

A schedule is a function of the share of a stage's tokens that are done, so it depends on no history and resumes by
itself. The framework alone applies it; engines are given each step's value.
"""

from __future__ import annotations

import math

from cpt_dist.config import ScheduleConfig


def learning_rate(schedule: ScheduleConfig, progress: float) -> float:
    """The learning rate of the step that ends at `progress` (0 to 1; clamped beyond).

    Linear warm-up from 0 to the peak. Then `constant`; or `cosine`: half a cosine to the minimum (Loshchilov and
    Hutter, arXiv 1608.03983); or `wsd`: the peak until 1 - decay, then down to the minimum, linearly or as 1 - sqrt
    (Hägele et al., arXiv 2405.18392, section 3).
    """
    progress = min(max(progress, 0.0), 1.0)
    peak, low = schedule.peak_lr, schedule.peak_lr * schedule.min_lr_ratio
    if progress < schedule.warmup:
        return peak * progress / schedule.warmup
    if schedule.name == "cosine":
        rest = 1.0 - schedule.warmup
        done = (progress - schedule.warmup) / rest if rest > 0 else 1.0
        return low + 0.5 * (peak - low) * (1.0 + math.cos(math.pi * done))
    if schedule.name == "wsd" and schedule.decay > 0 and progress > 1.0 - schedule.decay:
        done = min(1.0, (progress - (1.0 - schedule.decay)) / schedule.decay)
        shape = done if schedule.decay_shape == "linear" else math.sqrt(done)
        return peak + (low - peak) * shape
    return peak
