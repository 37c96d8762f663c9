"""A stage's mixture with strata inside: which form it may have, and the checks that need the configuration alone.

`law: 0.7`, `law: {share: 0.7, strata: {high: 3, low: 1}}` and `law: {share: 0.7, length_upsampling: …}` are each a
source's entry. It is a part of
`cpt_dist.config` in a file of its own; `cpt_dist/data/layout.py` makes shares of strata from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cpt_dist.curriculum_config import CurriculumConfig
from cpt_dist.errors import nearest
from cpt_dist.length_upsampling import FACTORS, KEY, upsampling_problems
from cpt_dist.strata_config import LABEL, OTHER, UNSCORED, StrataConfig, stratum_names

_WORDS = ("share", "strata", KEY)


def is_nested(value: Any) -> bool:
    """Whether a source's entry has strata of its own."""
    return isinstance(value, Mapping)


def outer_mixture(mixture: Mapping[str, Any]) -> dict[str, Any]:
    """The mixture with each nested entry replaced by its share; that of a source that doesn't give one is 1."""
    return {name: value.get("share", 1.0) if is_nested(value) else value for name, value in mixture.items()}


def inner_mixture(mixture: Mapping[str, Any], source: str) -> dict[str, Any] | None:
    """Stratum -> share or points inside a source, None where they are not given."""
    value = mixture[source]
    return dict(value.get("strata", {})) or None if is_nested(value) else None


def inner_factors(mixture: Mapping[str, Any], source: str) -> dict[str, float]:
    """Stratum -> how often its tokens count inside a source whose strata have no shares; once where left out."""
    value = mixture[source]
    return dict(value.get(FACTORS, {})) if is_nested(value) else {}


def nested_problems(mixture: Mapping[str, Any], strata: Mapping[str, StrataConfig | None]) -> list[str]:
    """What is wrong with the nested entries of a mixture; `strata` is that of each source of `data.sources`."""
    problems = []
    for name, value in mixture.items():
        if not is_nested(value):
            continue
        key = f"mixture.{name}"
        problems += [
            f"{key}.{word}: an entry has share and strata or {KEY}; {nearest(str(word), _WORDS)}"
            for word in value
            if word not in _WORDS
        ]
        inside = value.get("strata", {})
        if "share" not in value:
            problems.append(f"{key}: it has no share; write {name}: {{share: …, strata: {{…}}}}")
        if KEY in value:
            problems += [f"{key}.{problem}" for problem in upsampling_problems(value, name, strata.get(name))]
        elif not is_nested(inside) or not inside:
            problems.append(f"{key}.strata: {inside!r} is no mapping of strata to shares")
        elif (defined := strata.get(name)) is None:
            problems.append(f"{key}.strata: source '{name}' has none; set data.sources.{name}.strata")
        else:
            problems += [f"{key}.strata: {problem}" for problem in _unknown(inside, defined)]
    return problems


def known_strata(strata: StrataConfig) -> list[str] | None:
    """All names that a source's strata may have; None where they are the labels of its documents."""
    if strata.by == LABEL:
        return [*strata.labels, OTHER, UNSCORED] if strata.labels else None
    return [*stratum_names(strata), UNSCORED]


def _unknown(names: Mapping[str, Any], strata: StrataConfig) -> list[str]:
    known = known_strata(strata)
    return [f"there is no '{n}'; {nearest(n, known)}" for n in names if known is not None and n not in known]


def curriculum_names(curriculum: CurriculumConfig) -> set[str]:
    """The sources and strata (law/high) that a curriculum names."""
    steps = [step[1] for step in curriculum.steps if isinstance(step, (list, tuple)) and len(step) == 2]
    named = [*curriculum.buckets, *curriculum.domain, *curriculum.start]
    return {*named, *(name for step in steps if isinstance(step, Mapping) for name in step)}


def names_strata(curriculum: CurriculumConfig) -> bool:
    """Whether a curriculum acts on strata; else it acts on sources, and what is inside them stays in proportion."""
    return any("/" in name for name in curriculum_names(curriculum))


def flat_mixture(
    mixture: Mapping[str, Any], curriculum: CurriculumConfig, strata: Mapping[str, StrataConfig | None]
) -> tuple[dict[str, Any], list[str]]:
    """Sources and the strata that `curriculum` may name, with shares for its checks, and what can't be one of them.

    Shares that only the shards can tell stand as 1.
    """
    flat = outer_mixture(mixture)
    problems = []
    for name in sorted(curriculum_names(curriculum)):
        source, slash, stratum = name.partition("/")
        if not slash or source not in mixture:
            continue
        defined = strata.get(source)
        if defined is None:
            problems.append(f"'{name}': source '{source}' has no strata; set data.sources.{source}.strata")
            continue
        problems += [f"'{name}': {problem}" for problem in _unknown({stratum: 1}, defined)]
        inside = inner_mixture(mixture, source)
        flat[name] = 1.0 if inside is None else inside.get(stratum, 0.0)
    if names_strata(curriculum):
        for source in mixture:
            flat |= {f"{source}/{stratum}": share for stratum, share in (inner_mixture(mixture, source) or {}).items()}
    problems += [
        f"buckets: source '{name}' has strata; name those, as in {name}/{UNSCORED}"
        for name in curriculum.buckets
        if names_strata(curriculum) and strata.get(name) is not None
    ]
    return flat, problems
