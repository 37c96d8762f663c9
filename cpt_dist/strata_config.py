"""The schema of a source's strata, and the checks that need nothing but its values.

It is a part of `cpt_dist.config` in a file of its own; `cpt_dist/data/strata.py` says which document goes where.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from cpt_dist.errors import nearest

LENGTH, LABEL = "length", "label"
UNSCORED, OTHER = "unscored", "other"
"""Names of the strata of documents without a value, and of those whose label no stratum names."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_USUAL_NAMES: dict[int, tuple[str, ...]] = {2: ("low", "high"), 3: ("low", "middle", "high")}


@dataclass
class StrataConfig:
    """How the documents of a source are parted; each document is in exactly one stratum."""

    by: str = LENGTH
    """A key of `score_fields`, length (tokens of a document), or label."""
    edges: list[float] = field(default_factory=list)
    """Rising values at which a next stratum begins; one that lies on an edge is above it."""
    quantiles: int = 0
    """Instead of edges: so many strata with equal numbers of documents, as near as equal values allow."""
    names: list[str] = field(default_factory=list)
    """Names of the strata from the lowest values to the highest; default: low and high, low, middle and high, or
    part1, part2, …"""
    labels: dict[str, list[str]] = field(default_factory=dict)
    """by=label: name of a stratum -> the labels in it; all others go to `other`. Default: a stratum for each label."""


def stratum_names(strata: StrataConfig) -> list[str]:
    """Names of the strata of edges or quantiles, from the lowest values up."""
    count = strata.quantiles or len(strata.edges) + 1
    return list(strata.names) or list(_USUAL_NAMES.get(count, [f"part{number + 1}" for number in range(count)]))


def strata_problems(strata: StrataConfig, score_fields: Iterable[str], label_field: str | None) -> list[str]:
    """What is wrong with `strata` for a source of these fields; each problem begins with the name of the field."""
    known = {LENGTH, *score_fields, *([LABEL] if label_field else [])}
    if strata.by not in known:
        how = "set label_field" if strata.by == LABEL else f"add score_fields.{strata.by}"
        return [f"by: '{strata.by}' is not stored; {nearest(strata.by, known)}, or {how}"]
    if strata.by == LABEL:
        return _label_problems(strata)
    problems = []
    if strata.labels:
        problems.append("labels: it is read with by=label only; take it out")
    if bool(strata.edges) == bool(strata.quantiles):
        problems.append(f"edges {list(strata.edges)} and quantiles {strata.quantiles}: give one of the two")
    elif strata.edges:
        if any(not math.isfinite(edge) for edge in strata.edges) or sorted(set(strata.edges)) != list(strata.edges):
            problems.append(f"edges: {list(strata.edges)} must be numbers that rise")
    elif strata.quantiles < 2:
        problems.append(f"quantiles: {strata.quantiles} must be at least 2")
    count = strata.quantiles or len(strata.edges) + 1
    if strata.names and len(strata.names) != count:
        problems.append(f"names: {list(strata.names)} are {len(strata.names)} names for {count} strata")
    return problems + _name_problems("names", strata.names)


def _label_problems(strata: StrataConfig) -> list[str]:
    problems = [
        f"{name}: it is not read with by=label; take it out"
        for name in ("edges", "quantiles", "names")
        if getattr(strata, name)
    ]
    members = [label for labels in strata.labels.values() for label in labels]
    problems += [
        f"labels: '{label}' is in two strata; each label goes into one"
        for label in sorted({label for label in members if members.count(label) > 1})
    ]
    problems += [f"labels.{name}: it names no label" for name, labels in strata.labels.items() if not labels]
    return problems + _name_problems("labels", list(strata.labels))


def _name_problems(key: str, names: list[str]) -> list[str]:
    problems = [
        f"{key}: '{name}' can't name a stratum; use letters, digits, '_', '-' and '.'"
        for name in names
        if not _NAME.fullmatch(name)
    ]
    problems += [f"{key}: '{name}' is kept for documents without a value" for name in names if name == UNSCORED]
    problems += [f"{key}: '{name}' is there twice" for name in sorted({n for n in names if names.count(n) > 1})]
    return problems
