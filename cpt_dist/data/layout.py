"""From a stage's nested mixture to the shares of what the sample order reads: sources, strata, generations.

Shares are made in three steps, each an exact product: of sources (the mixture, a curriculum, a ledger entry), of strata
within a source (as given, else in proportion to tokens, times a factor where long documents are upsampled), of
generations within a stratum (in proportion to tokens). A source without strata that never grew passes through
unchanged. Nothing here knows a file or a sample.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from cpt_dist.curriculum_config import CurriculumConfig
from cpt_dist.data.caps import Cap
from cpt_dist.data.curricula import scheduled_mixture
from cpt_dist.data.stage_counts import Knots
from cpt_dist.data.stage_plan import StagePlan
from cpt_dist.data.view_names import parse_view
from cpt_dist.errors import UserError, nearest
from cpt_dist.mixture_knots import mixture_knots
from cpt_dist.nested_mixture import inner_factors, inner_mixture, names_strata, outer_mixture

PIECES = 32


class Layout:
    """Which views each source is read through, and the shares of views that a stage's mixture means.

    `tokens` is view -> its tokens, `late` the generations (source, number) that a run's ledger lets in on its way. A
    source that no view belongs to stands for itself.
    """

    def __init__(self, tokens: Mapping[str, int], late: Collection[tuple[str, int]] = ()) -> None:
        self._tokens = dict(tokens)
        self._late = set(late)
        self._views: dict[str, list[str]] = {}
        for name in sorted(tokens):
            self._views.setdefault(parse_view(name).source, []).append(name)

    def views(self, source: str) -> list[str]:
        """The views of a source, by name."""
        return self._views.get(source, [source])

    def members(self, mixture: Mapping[str, Any]) -> list[str]:
        """The views that a stage with `mixture` reads, by name."""
        return sorted(view for source in mixture for view in self.views(source))

    def generations(self) -> set[tuple[str, int]]:
        """(source, generation) of all views."""
        return {parse_view(name)[:2] for name in self._tokens}

    def is_plain(self, mixture: Mapping[str, Any]) -> bool:
        """Whether every source of a mixture is one view, its own."""
        return all(self.views(source) == [source] for source in mixture)

    def caps(self, caps: Mapping[str, Cap]) -> dict[str, Cap]:
        """View -> the cap of its source."""
        return {name: caps[source] for name in self._tokens if (source := parse_view(name).source) in caps}

    def knots(
        self, plan: StagePlan, absent: Collection[tuple[str, int]] = (), weights: Mapping[str, Any] | None = None
    ) -> Knots:
        """Progress values and normalised shares there, [knot][view], views as `members` lists them.

        `absent` are the generations (source, number) that are not read yet, `weights` a ledger entry's shares instead
        of the mixture's. Between two knots shares lie on a straight line. Raises UserError for strata that don't exist
        or have documents and no share.
        """
        if self.is_plain(plan.mixture):
            if weights is None:
                return plan.knots()
            return mixture_knots({name: weights.get(name, 0.0) for name in sorted(plan.mixture)})
        present = {name: n for name, n in self._tokens.items() if parse_view(name)[:2] not in absent}
        knots, keys = self._stratum_knots(plan, present, weights)
        return _split_generations(knots, keys, self.members(plan.mixture), present)

    def _stratum_knots(
        self, plan: StagePlan, present: Mapping[str, int], weights: Mapping[str, Any] | None
    ) -> tuple[Knots, list[str]]:
        """The shares of strata (and of sources without), and their names."""
        tokens = _by_key(present)
        sources = sorted(plan.mixture)
        strata = {source: [key for key in sorted(tokens) if parse_view(key).source == source] for source in sources}
        curriculum = CurriculumConfig(**plan.curriculum) if plan.curriculum is not None else None
        inner = {source: self._inner(plan, source, strata[source] or [source], tokens) for source in sources}
        keys = [key for source in sources for key in strata[source] or [source]]
        if curriculum is not None and names_strata(curriculum):
            knots = _on_strata(plan, curriculum, inner, keys, tokens)
        else:
            mixture = outer_mixture(plan.mixture)
            outer = mixture_knots(scheduled_mixture({source: mixture[source] for source in sources}, curriculum))
            knots = _product(outer, [inner[source][0] for source in sources])
        if weights is not None:
            outer = mixture_knots({name: weights.get(name, 0.0) for name in sources})
            knots = _product(outer, [_inside(knots, keys, inner[source]) for source in sources])
        return knots, keys

    def _inner(
        self, plan: StagePlan, source: str, keys: list[str], tokens: Mapping[str, int]
    ) -> tuple[Knots, list[str]]:
        """The shares of strata inside a source, on their own scale, and the strata's names."""
        given = inner_mixture(plan.mixture, source)
        if given is None:
            factors = inner_factors(plan.mixture, source)
            shares = [tokens.get(key, 0) * factors.get(str(parse_view(key).stratum), 1.0) for key in keys]
            total = sum(shares)
            return ([0.0], [[share / total if total else 1 / len(keys) for share in shares]]), keys
        names = {key: str(parse_view(key).stratum) for key in keys}
        where = f"stage '{plan.name}': mixture.{source}.strata"
        problems = [
            f"{where}: '{name}' is no stratum of it; {nearest(name, names.values())}"
            for name in given
            if name not in names.values()
        ]
        problems += [
            f"{where} doesn't name '{name}', which holds {tokens[key]:,} tokens; give it a share (0 is one too)"
            for key, name in names.items()
            if name not in given and key not in self._of_late_generations() and tokens[key]
        ]
        if problems:
            raise UserError(problems)
        return mixture_knots({key: given.get(name, 0.0) for key, name in names.items()}), keys

    def _of_late_generations(self) -> set[str]:
        """The strata that only a generation brought which the run didn't begin with."""
        first = {parse_view(n).key for n, tokens in self._tokens.items() if tokens and not self._is_late(n)}
        return {parse_view(name).key for name in self._tokens if self._is_late(name)} - first

    def _is_late(self, name: str) -> bool:
        return parse_view(name)[:2] in self._late

    def unread(self, mixture: Mapping[str, Any]) -> list[str]:
        """The strata that came with a late generation and that a mixture, made before, gives no share."""
        return [
            key
            for key in sorted(self._of_late_generations())
            if (source := parse_view(key).source) in mixture
            and (given := inner_mixture(mixture, source)) is not None
            and parse_view(key).stratum not in given
        ]


def _by_key(present: Mapping[str, int]) -> dict[str, int]:
    tokens: dict[str, int] = {}
    for name, number in present.items():
        key = parse_view(name).key
        tokens[key] = tokens.get(key, 0) + number
    return tokens


def _on_strata(
    plan: StagePlan,
    curriculum: CurriculumConfig,
    inner: Mapping[str, tuple[Knots, list[str]]],
    keys: list[str],
    tokens: Mapping[str, int],
) -> Knots:
    """The knots of a curriculum that names strata: it acts on the flat mixture, a source standing for its strata."""
    outer = outer_mixture(plan.mixture)
    inside = {key: share for (_, rows), names in inner.values() for key, share in zip(names, rows[0], strict=True)}
    flat = {key: outer[parse_view(key).source] * inside[key] for key in keys}

    def spread(shares: Mapping[str, Any]) -> dict[str, float]:
        result: dict[str, float] = {}
        for name, share in shares.items():
            for key in inner[name][1] if name in inner else [name]:
                result[key] = result.get(key, 0.0) + share * (inside[key] if name in inner else 1.0)
        return result

    named = [*curriculum.buckets, *curriculum.domain, *curriculum.start, *(n for _, s in curriculum.steps for n in s)]
    problems = [
        f"stage '{plan.name}' curriculum: '{name}' is no stratum; {nearest(name, keys)}"
        for name in sorted({name for name in named if name not in keys and name not in inner})
    ]
    if problems:
        raise UserError(problems)
    # A stratum that turned out empty can't be a bucket: it would have to be read first, or last, and has nothing.
    buckets = [name for name in curriculum.buckets if tokens.get(name) and flat[name] > 0]
    domain = [key for name in curriculum.domain for key in (inner[name][1] if name in inner else [name])]
    if curriculum.buckets and len(buckets) < 2:
        return mixture_knots(flat)
    if domain and all(key in domain or not share for key, share in flat.items()):
        raise UserError(f"stage '{plan.name}' curriculum.domain: it names all that has a share; leave something out")
    chosen = replace(
        curriculum,
        buckets=buckets,
        domain=domain,
        start=spread(curriculum.start),
        steps=[[progress, spread(shares)] for progress, shares in curriculum.steps],
    )
    return mixture_knots(scheduled_mixture(flat, chosen))


def _inside(knots: Knots, keys: list[str], inner: tuple[Knots, list[str]]) -> Knots:
    """The columns of one source, to be scaled to its share; where they are all 0, as they are inside the source."""
    places = [keys.index(key) for key in inner[1]]
    rows = [[row[place] for place in places] for row in knots[1]]
    return knots[0], [row if sum(row) > 0 else inner[0][1][0] for row in rows]


def _product(outer: Knots, inner: Sequence[Knots]) -> Knots:
    """Each column of `outer` shared out by the rows of its `inner`; exact at every knot of any of them.

    Where both levels move at once the product is a parabola; `PIECES` straight lines stand for it between two knots,
    off by at most a 4,096th of what the two move there.
    """
    if all(len(progress) == 1 for progress, _ in inner):
        parts = [_unit(rows[0]) for _, rows in inner]
        return outer[0], [[x * y for x, part in zip(row, parts, strict=True) for y in part] for row in outer[1]]
    all_knots = [outer, *inner]
    steps = {at for progress, _ in all_knots for at in progress if progress.count(at) > 1}
    places = sorted({at for progress, _ in all_knots for at in progress})
    if len(outer[0]) > 1:
        places = [a + (b - a) * piece / PIECES for a, b in itertools.pairwise(places) for piece in range(PIECES)]
        places.append(max(progress[-1] for progress, _ in all_knots))
    sided = sorted([(at, 1) for at in places] + [(at, 0) for at in steps if at > 0])
    rows = []
    for at, after in sided:
        shares = _at(outer, at, after)
        rows.append([x * y for x, one in zip(shares, inner, strict=True) for y in _unit(_at(one, at, after))])
    return [at for at, _ in sided], [_unit(row) for row in rows]


def _at(knots: Knots, at: float, after: int) -> list[float]:
    """The shares at progress `at`; where they make a step there, those before or (`after`) behind it."""
    progress, rows = knots
    same = [number for number, place in enumerate(progress) if place == at]
    if same:
        return rows[same[-1] if after else same[0]]
    right = int(np.searchsorted(progress, at))
    if right == len(progress):
        return rows[-1]
    a, b = progress[right - 1], progress[right]
    return [x + (y - x) * (at - a) / (b - a) for x, y in zip(rows[right - 1], rows[right], strict=True)]


def _unit(row: Sequence[float]) -> list[float]:
    total = sum(row)
    return [share / total if total else 1 / len(row) for share in row]


def _split_generations(knots: Knots, keys: list[str], members: list[str], present: Mapping[str, int]) -> Knots:
    """A column for each of `members`: that of its stratum, shared among the generations by their tokens."""
    totals = _by_key(present)
    columns = []
    for name in members:
        key = parse_view(name).key
        if name not in present or key not in keys:
            columns.append((0, 0.0))
        elif totals[key]:
            columns.append((keys.index(key), present[name] / totals[key]))
        else:  # nothing to read in any: the first stands for all, and the order refuses a share of it
            first = next(other for other in members if parse_view(other).key == key and other in present)
            columns.append((keys.index(key), 1.0 if name == first else 0.0))
    return knots[0], [[row[place] * part if part else 0.0 for place, part in columns] for row in knots[1]]
