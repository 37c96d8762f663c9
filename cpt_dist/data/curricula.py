"""Curricula: named functions from a stage's full shares to shares that move with its progress.

Each gives a table of [progress, share] points for every source, as a hand-written mixture does; `mixture_knots`
normalises it and `Quotas` counts it, so a curriculum has exact quotas, any sample without history, and no state. It
changes when a source is read and never which of its rows exist: no source with a share is left without, and rows
come in the same permutation under every curriculum. Bengio et al. 2009 ("Curriculum learning") is where the idea of
easy first is from; that the whole source stays reachable is what subset-style curricula give up.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

from cpt_dist.curriculum_config import CURRICULA, SHORTEST, CurriculumConfig
from cpt_dist.mixture_knots import mixture_knots

Table = list[tuple[float, float]]
"""[progress, share] points of a source; two points at one progress make a step."""

COSINE_PIECES = 32
"""Straight lines that stand for half a cosine: off by at most pi^2 / (16 x 32^2) = 0.0006 of its height, and in what
has been read so far by at most 0.00013 of height x length, 0 again at its end."""


def scheduled_mixture(mixture: dict[str, Any], curriculum: CurriculumConfig | None) -> dict[str, Any]:
    """`mixture` under `curriculum`: the points of every source, in the form that `mixture_knots` reads.

    Both have been validated (`cpt_dist.config.validate`). Without a curriculum the mixture itself.
    """
    if curriculum is None:
        return mixture
    return dict(_FUNCTIONS[curriculum.name](mixture, curriculum))


def nominal_shares(mixture: dict[str, Any], curriculum: CurriculumConfig | None) -> dict[str, float]:
    """Share of each source over the whole stage: the integral of its normalised share over progress."""
    scheduled = scheduled_mixture(mixture, curriculum)
    progress, shares = mixture_knots(scheduled)
    progress, shares = [*progress, 1.0], [*shares, shares[-1]]
    totals = dict.fromkeys(scheduled, 0.0)
    for (a, row), (b, following) in itertools.pairwise(zip(progress, shares, strict=True)):
        for name, x, y in zip(scheduled, row, following, strict=True):
            totals[name] += (b - a) * (x + y) / 2
    return totals


def immediate(mixture: dict[str, Any], _curriculum: CurriculumConfig) -> dict[str, Table]:
    """The full shares from the first sample on."""
    return {name: [(0.0, share)] for name, share in _normalised(mixture).items()}


def gradual(mixture: dict[str, Any], curriculum: CurriculumConfig) -> dict[str, Table]:
    """From `start` to the full shares over `ramp`, then the full shares."""
    start, full = _normalised({**dict.fromkeys(mixture, 0.0), **curriculum.start}), _normalised(mixture)
    return {name: _shaped([(0.0, start[name]), (curriculum.ramp, full[name])], curriculum.shape) for name in mixture}


def staged(mixture: dict[str, Any], curriculum: CurriculumConfig) -> dict[str, Table]:
    """The mixture until the first of `steps`, then the shares of each until the next."""
    shares = _normalised(mixture)
    tables: dict[str, Table] = {name: [(0.0, shares[name])] for name in mixture}
    for progress, given in curriculum.steps:
        before, shares = shares, _normalised({**dict.fromkeys(mixture, 0.0), **given})
        for name, table in tables.items():
            table += [(float(progress), before[name]), (float(progress), shares[name])]
    return tables


def quality_first(mixture: dict[str, Any], curriculum: CurriculumConfig) -> dict[str, Table]:
    """Bucket 0 open from the start; each further one opens over an equal part of `opening`, best first.

    An open bucket has its full share as seen against the other open ones, a bucket that opens a growing part of it;
    the joint share of the buckets does not move, nor do the other sources. From `opening` on all have full shares.
    """
    full = _normalised(mixture)
    joint = sum(full[name] for name in curriculum.buckets)
    tables: dict[str, Table] = {name: [(0.0, full[name])] for name in mixture}
    for name in curriculum.buckets:
        tables[name] = []
    last = len(curriculum.buckets) - 1
    for opened in range(last + 1):
        progress = curriculum.opening * opened / last
        open_share = sum(full[name] for name in curriculum.buckets[: opened + 1])
        for number, name in enumerate(curriculum.buckets):
            share = joint * full[name] / open_share if number <= opened else 0.0
            tables[name].append((progress, share))
    return tables


def difficulty(mixture: dict[str, Any], curriculum: CurriculumConfig) -> dict[str, Table]:
    """The buckets one after the other, easiest first, each for as long as its share asks for.

    With f_i the bucket's part of the buckets' joint share and F_i = f_0 + … + f_i, bucket i hands over to the next
    around progress F_i, in a straight line that is symmetric about F_i and `overlap` long to each side (less where
    the stage's ends are nearer). So the integral of each share over the stage is the full share: the order changes and
    the subset does not. A part `floor` of each share is spread evenly.
    """
    full = _normalised(mixture)
    tables: dict[str, Table] = {name: [(0.0, full[name])] for name in mixture}
    joint = sum(full[name] for name in curriculum.buckets)
    parts = [full[name] / joint for name in curriculum.buckets]
    borders = [min(at, 1.0) for at in itertools.accumulate(parts)][:-1]
    halves = [min(curriculum.overlap, at, 1 - at) for at in borders]
    ramps = [(at, half if half > SHORTEST else 0.0) for at, half in zip(borders, halves, strict=True)]
    for number, name in enumerate(curriculum.buckets):
        knots = sorted({0.0, *(at + side * half for at, half in ramps for side in (-1, 1))})
        table: Table = []
        for progress in knots:
            for side in (-1, 1) if any(half == 0 and at == progress for at, half in ramps) else (1,):
                begun = _handed_over(ramps[number - 1], progress, side) if number else 1.0
                ended = _handed_over(ramps[number], progress, side) if number < len(ramps) else 0.0
                moving = max(0.0, begun - ended)
                share = joint * ((1 - curriculum.floor) * moving + curriculum.floor * parts[number])
                table.append((progress, share))
        tables[name] = table
    return tables


def warmup_cooldown(mixture: dict[str, Any], curriculum: CurriculumConfig) -> dict[str, Table]:
    """The joint share of `domain` rises from `low` of it over `warmup` and falls back over `cooldown`."""
    full = _normalised(mixture)
    joint = sum(full[name] for name in curriculum.domain)
    points: Table = [(0.0, joint if curriculum.warmup == 0 else curriculum.low * joint)]
    if curriculum.warmup:
        points.append((curriculum.warmup, joint))
    if curriculum.cooldown:
        if points[-1][0] < 1 - curriculum.cooldown:
            points.append((1 - curriculum.cooldown, joint))
        points.append((1.0, curriculum.low * joint))
    curve = _shaped(points, curriculum.shape)
    tables = {}
    for name, share in full.items():
        if name in curriculum.domain:
            tables[name] = [(at, share / joint * height) for at, height in curve]
        else:
            tables[name] = [(at, share / (1 - joint) * (1 - height)) for at, height in curve]
    return tables


def table(mixture: dict[str, Any], curriculum: CurriculumConfig) -> dict[str, Table]:
    """The points of the mixture, joined by `shape`."""
    points = {
        name: [(float(at), float(share)) for at, share in value] if isinstance(value, (list, tuple)) else [(0.0, value)]
        for name, value in mixture.items()
    }
    return {name: _shaped(table, curriculum.shape) for name, table in points.items()}


def _normalised(shares: dict[str, Any]) -> dict[str, float]:
    total = sum(shares.values())
    return {name: share / total for name, share in shares.items()}


def _handed_over(ramp: tuple[float, float], progress: float, side: int) -> float:
    """How far a handover (centre, half-width) has gone; at a step (half-width 0), `side` -1 is before it, 1 after."""
    centre, half = ramp
    if half == 0:
        return float(progress > centre or (progress == centre and side > 0))
    return min(1.0, max(0.0, (progress - centre + half) / (2 * half)))


def _shaped(points: Table, shape: str) -> Table:
    """`points` joined by straight lines, or by half cosines in `COSINE_PIECES` straight lines each."""
    if shape == "linear":
        return points
    result = points[:1]
    for (a, x), (b, y) in itertools.pairwise(points):
        if x != y and b > a:
            for piece in range(1, COSINE_PIECES):
                risen = (1 - math.cos(math.pi * piece / COSINE_PIECES)) / 2
                result.append((a + (b - a) * piece / COSINE_PIECES, x + (y - x) * risen))
        result.append((b, y))
    return result


_FUNCTIONS: dict[str, Callable[[dict[str, Any], CurriculumConfig], dict[str, Table]]] = {
    function.__name__: function
    for function in (immediate, gradual, staged, quality_first, difficulty, warmup_cooldown, table)
}
assert set(_FUNCTIONS) == set(CURRICULA)
