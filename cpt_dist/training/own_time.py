"""This rank's own time in a step, which waiting for others doesn't lengthen: what the straggler report compares.

Collectives make all ranks as slow as the slowest, so the clock says nothing about who that is. On a CPU the
processor's time does; for a device there is a probe that needs no other rank.
"""

from __future__ import annotations

import time

import torch

from cpt_dist.cluster.health import OWN_TIME
from cpt_dist.cluster.heartbeat import Activity


class OwnTime:
    """This rank's own seconds in each phase of OWN_TIME, for the straggler report."""

    def __init__(self, every_steps: int, device: torch.device) -> None:
        self._every, self._device = every_steps, device
        self._probe = 0.0
        size = 2048 if device.type == "cuda" else 192
        self._matrix = torch.ones(size, size, device=device)

    def measured(self, activity: Activity, data_wait_seconds: float, step: int) -> list[float]:
        """The seconds since the last call, and the newest probe."""
        if self._every and step % self._every == 1 % self._every:
            self._probe = self._seconds_of_probe()
        own = [data_wait_seconds, *(activity.processor.get(phase, 0.0) for phase in OWN_TIME[1:3]), self._probe]
        activity.reset()
        return own

    def _seconds_of_probe(self) -> float:
        fastest = float("inf")
        for _ in range(3):  # the first one warms up, and a single one may be interrupted
            begin = time.perf_counter()
            float((self._matrix @ self._matrix)[0, 0])  # reading a value waits for the device
            fastest = min(fastest, time.perf_counter() - begin)
        return fastest
