"""Which steps have bad numbers: a loss or gradient that isn't finite, or one that leaps far above its like.

A spike is judged by a robust z-score, with median and median absolute deviation (Iglewicz and Hoaglin, "How to Detect
and Handle Outliers", 1993), against the last good steps of the stage; gradient norms by their logarithm, since they
spread over orders of magnitude. It judges and remembers; what follows is in `bad_steps.py`.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cpt_dist.config import GuardsConfig
from cpt_dist.data.skip import STEP, WINDOW, Skip, SkippedSamples

if TYPE_CHECKING:
    from cpt_dist.data.order import SampleOrder

_LEAST_SPREAD = 0.01
"""Of the median's size (at least of 1): a window of nearly equal values makes no spike of a small change."""


def robust_z(value: float, window: Sequence[float]) -> float:
    """How many robust standard deviations `value` lies above the median of `window`; 1.4826 MAD is one of a normal."""
    median = statistics.median(window)
    spread = 1.4826 * statistics.median(abs(one - median) for one in window)
    return (value - median) / max(spread, _LEAST_SPREAD * max(1.0, abs(median)))


class Guards:
    """The judge of one run; the same numbers, and so the same judgements, on every rank."""

    def __init__(self, config: GuardsConfig) -> None:
        self.config = config
        self._stage = -1
        self._losses: deque[float] = deque(maxlen=config.window)
        self._log_norms: deque[float] = deque(maxlen=config.window)

    def enter(self, stage: int) -> None:
        """Begin a new window where the stage is another than before: its losses may lie elsewhere."""
        if stage != self._stage:
            self._stage = stage
            self._losses.clear()
            self._log_norms.clear()

    def objection(self, loss: float, grad_norm: float) -> str:
        """Why a step with these numbers is bad; empty where it is good."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(grad_norm):
            return "a gradient is not finite"
        if self.config.spike_threshold and len(self._losses) >= self.config.window // 2:
            for name, value, window in (
                ("loss", loss, self._losses),
                ("log gradient norm", _log(grad_norm), self._log_norms),
            ):
                z = robust_z(value, window)
                if z > self.config.spike_threshold:
                    return f"the {name} {value:.4g} lies {z:.1f} robust deviations above its median"
        return ""

    def observe(self, loss: float, grad_norm: float) -> None:
        """Remember the numbers of a good step."""
        self._losses.append(loss)
        self._log_norms.append(_log(grad_norm))

    def state(self) -> dict[str, Any]:
        """The memory, for a checkpoint; a float survives JSON bit by bit."""
        if not self.config.spike_threshold:
            return {}
        return {"stage": self._stage, "losses": list(self._losses), "log_norms": list(self._log_norms)}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up the memory of a checkpoint; one without it begins a new window."""
        self._stage = state.get("stage", -1)
        self._losses = deque(state.get("losses", []), maxlen=self.config.window)
        self._log_norms = deque(state.get("log_norms", []), maxlen=self.config.window)

    @staticmethod
    def bad_steps_before(order: SampleOrder, n: int) -> list[Skip]:
        """The bad steps in a row that end at sample n, oldest first, as the ledger has them.

        Those of a window count no more: the run has gone back because of them.
        """
        windows = SkippedSamples(skip for skip in order.skips if skip.what == WINDOW)
        by_stop = {skip.n_stop: skip for skip in order.skips if skip.what == STEP and skip.n_start not in windows}
        row: list[Skip] = []
        while n in by_stop:
            row.insert(0, by_stop[n])
            n = by_stop[n].n_start
        return row

    def in_trouble(self, order: SampleOrder, n: int) -> bool:
        """Whether the step before sample n was bad."""
        return bool(self.bad_steps_before(order, n))


def _log(grad_norm: float) -> float:
    return math.log(max(grad_norm, 1e-30))
