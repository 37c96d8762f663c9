"""Which checkpoints stay: a pure function of their steps, scores and names.

The newest, every n-th, the best by held-out bits per byte, and those that a user named. It removes nothing itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MACRO = "macro"


@dataclass(frozen=True)
class Retention:
    """The rules of `checkpoint.keep_…`; a checkpoint that any of them keeps stays."""

    keep_last: int = 0
    """Newest ones; 0: all."""
    keep_every: int = 0
    """Those whose step is a multiple of it; 0: none for this reason."""
    keep_best: int = 0
    """Those with the lowest score; 0: none for this reason."""
    best_of: str = MACRO
    """The score: bits per byte of the source of this name, or macro, the mean over sources."""

    def score(self, bits_per_byte: Mapping[str, float]) -> float | None:
        """The score of a checkpoint evaluated at its step; None where it wasn't."""
        value = bits_per_byte.get(self.best_of)
        if self.best_of == MACRO and bits_per_byte:
            value = sum(bits_per_byte.values()) / len(bits_per_byte)
        return value if value is not None and math.isfinite(value) else None

    def reasons(
        self, steps: Sequence[int], evaluations: Mapping[int, Mapping[str, float]], names: Mapping[str, int]
    ) -> dict[int, list[str]]:
        """Step -> why it stays, in words; a step whose list is empty may go.

        `evaluations` is step -> source -> bits per byte, of the steps that have one.
        """
        newest_first = sorted(steps, reverse=True)
        found: dict[int, list[str]] = {step: [] for step in sorted(steps)}
        for place, step in enumerate(newest_first, start=1):
            if self.keep_last == 0 or place <= self.keep_last:
                found[step].append("newest" if place == 1 else f"last {place}" if self.keep_last else "all are kept")
            if self.keep_every and step % self.keep_every == 0:
                found[step].append(f"every {self.keep_every}")
        scores = {step: self.score(evaluations.get(step, {})) for step in steps}
        ranked = sorted((score, step) for step, score in scores.items() if score is not None)
        for place, (score, step) in enumerate(ranked[: self.keep_best], start=1):
            found[step].append(f"best {place} of {self.best_of} ({score:.4f})")
        for name, step in sorted(names.items()):
            if step in found:
                found[step].append(f"named '{name}'")
        return found
