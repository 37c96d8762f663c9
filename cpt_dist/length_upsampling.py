"""Length upsampling inside a source of a stage's mixture: its form, its checks, and the strata that it needs.

`books: {share: 0.6, length_upsampling: {min_tokens: 4096, factor: 5}}` keeps the share of the source and lets each
token of its documents of at least 4,096 tokens count five times inside it (Fu et al., arXiv 2402.10171, section 3:
per-source length upsampling). It works on strata by length; a source without any gets those that its stages need.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cpt_dist.strata_config import LENGTH, StrataConfig, stratum_names

KEY = "length_upsampling"
FACTORS = "factors"
"""Where a stage's plan keeps the factor of each stratum, in the place of `KEY`."""
_FORM = "write {min_tokens: 4096, factor: 5}, or a list of those with rising min_tokens"


@dataclass(frozen=True)
class LengthFactor:
    """Documents of at least `min_tokens` tokens (up to the next one's) count `factor` times."""

    min_tokens: int
    factor: float


def length_factors(entry: Any) -> list[LengthFactor]:
    """The factors of a source's entry in a mixture, as written; none where there are none or they have no form."""
    given = entry.get(KEY) if isinstance(entry, Mapping) else None
    parts = [given] if isinstance(given, Mapping) else given if isinstance(given, (list, tuple)) else []
    found = []
    for part in parts:
        if not isinstance(part, Mapping) or set(part) != {"min_tokens", "factor"} or not _are_numbers(part.values()):
            return []
        if part["min_tokens"] != int(part["min_tokens"]):
            return []
        found.append(LengthFactor(int(part["min_tokens"]), float(part["factor"])))
    return found


def _are_numbers(values: Any) -> bool:
    return all(
        isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) for value in values
    )


def upsampling_problems(entry: Mapping[str, Any], source: str, strata: StrataConfig | None) -> list[str]:
    """What is wrong with the length upsampling of a source whose strata are `strata`; begins with the key."""
    factors = length_factors(entry)
    if not factors:
        return [f"{KEY}: {entry[KEY]!r} is none; {_FORM}"]
    problems = [
        f"{KEY}.factor: {one.factor:g} must be positive, as no document may become unreachable"
        for one in factors
        if not one.factor > 0
    ]
    places = [one.min_tokens for one in factors]
    if places != sorted(set(places)) or places[0] < 2:
        problems.append(f"{KEY}.min_tokens: {places} must rise, from at least 2")
    if "strata" in entry:
        problems.append(f"{KEY}: the entry has strata too, whose shares say it all; keep one of the two")
    if strata is None:
        return problems
    key = f"data.sources.{source}.strata"
    if strata.by != LENGTH:
        problems.append(
            f"{KEY}: source '{source}' is parted by {strata.by}; set {key}.by=length, or take one of them out"
        )
    elif strata.quantiles:
        problems.append(f"{KEY}: the strata of source '{source}' are quantiles; give {key}.edges={places} instead")
    elif missing := [place for place in places if place not in strata.edges]:
        edges = sorted({*(int(edge) for edge in strata.edges), *places})
        problems.append(f"{KEY}: no stratum of source '{source}' begins at {missing}; set {key}.edges={edges}")
    return problems


def strata_of_sources(sources: Mapping[str, Any], stages: Sequence[Any]) -> dict[str, StrataConfig | None]:
    """The strata of each source: its own, else those by length that the `length_upsampling` of the stages needs.

    `sources` is name -> SourceConfig, `stages` are StageConfigs. One partition serves all stages of a run, with an
    edge for every `min_tokens`; strata are called under_4096, from_4096, ….
    """
    result: dict[str, StrataConfig | None] = {}
    for name, source in sources.items():
        result[name] = source.strata
        edges = sorted({one.min_tokens for stage in stages for one in length_factors(stage.mixture.get(name))})
        if source.strata is None and edges:
            names = [f"under_{edges[0]}", *(f"from_{edge}" for edge in edges)]
            result[name] = StrataConfig(LENGTH, edges=[float(edge) for edge in edges], names=names)
    return result


def with_factors(stage: Any, strata: Mapping[str, StrataConfig | None]) -> Any:
    """The stage (a StageConfig) with each `length_upsampling` spelt out as the factor of each stratum."""
    mixture = {}
    for name, entry in stage.mixture.items():
        factors, parts = length_factors(entry), strata.get(name)
        if not factors or parts is None:
            mixture[name] = entry
            continue
        kept = {key: value for key, value in entry.items() if key != KEY}
        begins = [-math.inf, *parts.edges]
        applied = [
            max((one for one in factors if one.min_tokens <= begin), key=_begin, default=None) for begin in begins
        ]
        values = [1.0 if one is None else one.factor for one in applied]
        mixture[name] = {**kept, FACTORS: dict(zip(stratum_names(parts), values, strict=True))}
    return replace(stage, mixture=mixture)


def _begin(one: LengthFactor) -> int:
    return one.min_tokens
