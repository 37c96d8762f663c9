"""The sign-flip test of paired differences: how often chance alone gives a sum as large as the observed one.

If nothing changed, each document's difference is as likely to have the other sign, so all 2^n ways to set the signs
are equally likely and the share of them whose sum is at least the observed one is an exact p-value, whatever the
sizes of the documents (Fisher 1935, "The Design of Experiments", section 21; Good 2005, "Permutation, Parametric and
Bootstrap Tests of Hypotheses", section 3.2). Above `EXACT_UP_TO` documents that share is estimated from random ways,
the observed one among them, which keeps the level (Phipson & Smyth 2010, "Permutation p-values should never be
zero").
"""

from __future__ import annotations

import numpy as np

EXACT_UP_TO = 14
"""Differences of which all ways to set the signs are looked at (16,384)."""
_CHUNK_ELEMENTS = 1 << 22


def p_greater(differences: np.ndarray, seed: int | list[int], num_flips: int = 10_000) -> float:
    """One-sided p-value of "the sum of `differences` is above 0", [items] of any unit, one for each independent item.

    Differences of 0 carry no sign and are left out; where none is left the p-value is 1. A margin is tested by taking
    it off each difference first. Raises ValueError for a difference that is no number.
    """
    if not np.isfinite(differences).all():
        raise ValueError("a difference is no number")
    values = differences[differences != 0].astype(np.float64)
    if not len(values):
        return 1.0
    # Sums of equal terms in another order differ in their last digits.
    bar = float(values.sum()) - 1e-12 * float(np.abs(values).sum())
    if len(values) <= EXACT_UP_TO:
        ways = np.arange(1 << len(values))[:, None] >> np.arange(len(values)) & 1
        return float(((2 * ways - 1) @ values >= bar).mean())
    generator = np.random.default_rng(seed)
    rows = max(1, _CHUNK_ELEMENTS // len(values))
    reached = 0
    for start in range(0, num_flips, rows):
        signs = generator.integers(0, 2, size=(min(rows, num_flips - start), len(values)), dtype=np.int8)
        reached += int(np.count_nonzero((2 * signs - 1) @ values >= bar))
    return (1 + reached) / (1 + num_flips)


def p_different(differences: np.ndarray, seed: int | list[int], num_flips: int = 10_000) -> float:
    """Two-sided p-value of "the sum of `differences` is not 0": twice the smaller one-sided one."""
    return min(1.0, 2 * min(p_greater(differences, seed, num_flips), p_greater(-differences, seed, num_flips)))
