"""Learning rates as closed forms of progress.

A schedule is a function of the share of a stage's tokens that are done, so it depends on no history and resumes by
itself. The framework alone applies it; engines are given each step's value. A stage may begin where the one before it
ended, so a plan that is extended by a stage goes on without a jump.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from cpt_dist.config import CptConfig, ScheduleConfig
from cpt_dist.errors import UserError


def learning_rate(schedule: ScheduleConfig, progress: float) -> float:
    """The learning rate of the step that ends at `progress` (0 to 1; clamped beyond).

    `schedule` has a peak and a start of its own (`stage_schedules` fills them in). Linear warm-up, then the curve that
    its name says; the last value holds beyond the end.
    """
    if schedule.peak_lr is None or schedule.start_lr_ratio is None:
        raise ValueError("the schedule begins where another ended; stage_schedules() says where")
    progress = min(max(progress, 0.0), 1.0) * schedule.covers
    return schedule.peak_lr * _CURVES[schedule.name](schedule, progress)


def stage_schedules(config: CptConfig) -> list[ScheduleConfig]:
    """The schedule of each stage, with the peaks and starts that the stage before it gives filled in.

    Raises UserError where a first stage asks for the end of one before it, and where a stage would have to begin above
    its own peak.
    """
    resolved: list[ScheduleConfig] = []
    problems: list[str] = []
    end: float | None = None
    for index, stage in enumerate(config.stages):
        schedule = stage.schedule or config.schedule
        if schedule.name == "linear_to_zero":
            schedule = replace(
                schedule, peak_lr=schedule.peak_lr if end is None else None, start_lr_ratio=1.0, warmup=0.0
            )
        where = f"stages.{index} ('{stage.name}').schedule"
        if None in (schedule.peak_lr, schedule.start_lr_ratio) and end is None:
            field = "peak_lr" if schedule.peak_lr is None else "start_lr_ratio"
            problems.append(f"{where}.{field}: null takes the end of the stage before, and there is none; give a value")
            continue
        peak = end if schedule.peak_lr is None else schedule.peak_lr
        if peak is None or not peak > 0:
            problems.append(f"{where}.peak_lr: the stage before ends at a learning rate of {peak}; give a value")
            continue
        start = schedule.start_lr_ratio
        if start is None:
            start = (end or 0.0) / peak
            if start > 1 + 1e-12:
                problems.append(
                    f"{where}.start_lr_ratio: the stage before ends at {end:g}, above this stage's peak_lr {peak:g}; "
                    "raise the peak, or set it to null"
                )
                continue
        resolved.append(replace(schedule, peak_lr=peak, start_lr_ratio=min(start, 1.0)))
        end = learning_rate(resolved[-1], 1.0)
    if problems:
        raise UserError(problems)
    return resolved


def run_learning_rate(config: CptConfig) -> Callable[[int, float], float]:
    """The learning rate of a run as a function of a stage's index and the progress within it."""
    schedules: Sequence[ScheduleConfig] = stage_schedules(config)
    return lambda stage, progress: learning_rate(schedules[stage], progress)


def _rise(schedule: ScheduleConfig, progress: float) -> float:
    """The warm-up at `progress` < warmup, as a share of the peak."""
    start = schedule.start_lr_ratio or 0.0
    return start + (1.0 - start) * progress / schedule.warmup


def _half_cosine(high: float, low: float, done: float) -> float:
    """From `high` at done = 0 to `low` at 1 (Loshchilov and Hutter, arXiv 1608.03983, equation 5)."""
    return low + 0.5 * (high - low) * (1.0 + math.cos(math.pi * done))


def _fall(schedule: ScheduleConfig, high: float, done: float) -> float:
    """The final decay from `high` to the minimum, both shares of the peak; `done` is 0 to 1."""
    low = min(schedule.min_lr_ratio, high)
    if schedule.decay_shape == "exponential":
        return high * (low / high) ** done
    shape = done if schedule.decay_shape == "linear" else math.sqrt(done)
    return high + (low - high) * shape


def _part(progress: float, begin: float, end: float) -> float:
    return min(1.0, max(0.0, (progress - begin) / (end - begin))) if end > begin else 1.0


def _constant(schedule: ScheduleConfig, progress: float) -> float:
    return _rise(schedule, progress) if progress < schedule.warmup else 1.0


def _linear_to_zero(schedule: ScheduleConfig, progress: float) -> float:
    return 1.0 - progress


def _linear(schedule: ScheduleConfig, progress: float) -> float:
    if progress < schedule.warmup:
        return _rise(schedule, progress)
    return 1.0 + (schedule.min_lr_ratio - 1.0) * _part(progress, schedule.warmup, 1.0)


def _cosine(schedule: ScheduleConfig, progress: float) -> float:
    if progress < schedule.warmup:
        return _rise(schedule, progress)
    return _half_cosine(1.0, schedule.min_lr_ratio, _part(progress, schedule.warmup, 1.0))


def _cosine_restarts(schedule: ScheduleConfig, progress: float) -> float:
    """Every cycle re-warms from where the one before ended (SGDR jumps, arXiv 1608.03983), and the last step is low."""
    cycle = min(int(progress * schedule.cycles), schedule.cycles - 1)
    within = progress * schedule.cycles - cycle
    start = schedule.start_lr_ratio if cycle == 0 else schedule.min_lr_ratio
    return _cosine(replace(schedule, start_lr_ratio=start), within)


def _wsd(schedule: ScheduleConfig, progress: float) -> float:
    if progress < schedule.warmup:
        return _rise(schedule, progress)
    begin = 1.0 - schedule.decay
    return _fall(schedule, 1.0, _part(progress, begin, 1.0)) if schedule.decay > 0 and progress > begin else 1.0


def _infinite(schedule: ScheduleConfig, progress: float) -> float:
    """Warm-up, half a cosine to the constant, the constant, the final decay (arXiv 2403.08763, section 6)."""
    if progress < schedule.warmup:
        return _rise(schedule, progress)
    begin, level = 1.0 - schedule.decay, schedule.constant_lr_ratio
    if schedule.decay > 0 and progress > begin:
        return _fall(schedule, level, _part(progress, begin, 1.0))
    cooled = schedule.warmup + schedule.cooldown
    return _half_cosine(1.0, level, _part(progress, schedule.warmup, cooled)) if progress < cooled else level


def _inverse_sqrt(schedule: ScheduleConfig, progress: float) -> float:
    """The root of warmup / progress (Vaswani et al., arXiv 1706.03762, equation 3), then the final decay."""
    if progress < schedule.warmup:
        return _rise(schedule, progress)
    begin = max(1.0 - schedule.decay, schedule.warmup)
    level = math.sqrt(schedule.warmup / min(progress, begin))
    return _fall(schedule, level, _part(progress, begin, 1.0)) if schedule.decay > 0 and progress > begin else level


_CURVES: dict[str, Callable[[ScheduleConfig, float], float]] = {
    "constant": _constant,
    "linear": _linear,
    "linear_to_zero": _linear_to_zero,
    "cosine": _cosine,
    "cosine_restarts": _cosine_restarts,
    "wsd": _wsd,
    "infinite": _infinite,
    "inverse_sqrt": _inverse_sqrt,
}
