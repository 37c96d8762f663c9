"""At which steps held-out text is scored inside training: a pure function that the job and its plan share.

General skills dip early and partly come back (the stability gap: Guo et al. 2024, arXiv 2406.14833), so a schedule that
looks often at first and seldom later sees more for the same price.
"""

from __future__ import annotations

STEPS, LOG = "steps", "log"
EVALUATION_SCHEDULES = (STEPS, LOG)
EARLY_PART = 0.05
"""Part of the run in which `log` scores after steps 1, 2, 4, 8, …"""
LATE_PART = 0.025
"""Part of the run between two later evaluations of `log`, where evaluation.every_steps is 0."""


def is_due(schedule: str, every_steps: int, step: int, num_steps: int) -> bool:
    """Whether held-out text is scored after `step` (from 1) of a run of `num_steps`; start and end are due anyway."""
    if schedule == STEPS:
        return every_steps > 0 and step % every_steps == 0
    if step <= EARLY_PART * num_steps:
        return step & (step - 1) == 0
    return step % (every_steps or max(1, round(LATE_PART * num_steps))) == 0
