"""From the mixture in a stage's configuration to straight lines of normalised shares."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from typing import Any

from cpt_dist.errors import UserError


def mixture_knots(mixture: dict[str, Any]) -> tuple[list[float], list[list[float]]]:
    """A stage's mixture as knots: progress values p_0=0 < … <= 1, and normalised shares [knot][source].

    Shares between two knots lie on the straight line between them; after the last knot they stay; where a source makes
    a step, two knots have the same progress. Sources are in the order of the mapping. Raises UserError where a value
    is no share or no list of [progress, share] points.
    """
    tables: dict[str, list[tuple[float, float]]] = {}
    problems = []
    for name, value in mixture.items():
        points = value if isinstance(value, (list, tuple)) else [[0.0, value]]
        try:
            table = [(float(at), float(share)) for at, share in points]
        except (TypeError, ValueError):
            problems.append(f"mixture.{name}: {value!r} is neither a share nor a list of [progress, share] points")
            continue
        ats = [at for at, _ in table]
        if not table or any(not math.isfinite(s) or s < 0 for _, s in table):
            problems.append(f"mixture.{name}: {value!r} has no share, a negative or an infinite one")
        elif ats[0] < 0 or ats[-1] > 1 or ats != sorted(ats) or any(a == b for a, b in zip(ats, ats[2:], strict=False)):
            problems.append(
                f"mixture.{name}: {value!r} needs progress values that rise within 0 to 1 (at most two of them equal)"
            )
        tables[name] = table
    if not mixture:
        problems.append("mixture is empty; name at least one source of data.sources with its share")
    if problems:
        raise UserError(problems)
    steps = {b for table in tables.values() for (a, _), (b, _) in itertools.pairwise(table) if a == b}
    places = {0.0, *(at for table in tables.values() for at, _ in table)}
    sided = sorted([(at, 1) for at in places] + [(at, 0) for at in steps if at > 0])
    knots = [at for at, _ in sided]
    shares = [[_interpolate(table, at, after) for table in tables.values()] for at, after in sided]
    totals = [sum(row) for row in shares]
    for at, total in zip(knots, totals, strict=True):
        if total <= 0:
            raise UserError(f"mixture: all shares are 0 at progress {at}; give one source a positive share")
    return knots, [[share / total for share in row] for row, total in zip(shares, totals, strict=True)]


def _interpolate(table: list[tuple[float, float]], at: float, after: int) -> float:
    """The share at progress `at`; where the table makes a step there, the one before or (`after`) behind it."""
    place = bisect_left(table, at, key=_progress)
    if place == len(table):
        return table[-1][1]
    if place + 1 < len(table) and table[place + 1][0] == at:
        return table[place + after][1]
    if place == 0:
        return table[0][1]
    (a, x), (b, y) = table[place - 1], table[place]
    return max(0.0, x + (y - x) * (at - a) / (b - a))  # rounding may lead below a share of 0


def _progress(point: tuple[float, float]) -> float:
    return point[0]
