"""The schema of a stage's curriculum, and the checks that need nothing but its values and the stage's mixture.

It is a part of `cpt_dist.config` in a file of its own. What each curriculum does to the shares is in
`cpt_dist/data/curricula.py`; nothing is computed here.
"""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from cpt_dist.errors import nearest, nearest_of

CURRICULA: dict[str, tuple[str, ...]] = {
    "immediate": (),
    "gradual": ("start", "ramp", "shape"),
    "staged": ("steps",),
    "quality_first": ("buckets", "opening"),
    "difficulty": ("buckets", "overlap", "floor"),
    "warmup_cooldown": ("domain", "low", "warmup", "cooldown", "shape"),
    "table": ("shape",),
}
"""Name of each curriculum -> the fields that it reads."""

SHAPES = ("linear", "cosine")
SHORTEST = 1e-6
"""Shortest progress over which a share moves; its ends and what lies between are different numbers."""


@dataclass
class CurriculumConfig:
    """How a stage's shares come to `mixture`, which names every source of the stage with its full share."""

    name: str = "immediate"
    """immediate, gradual, staged, quality_first, difficulty, warmup_cooldown or table. Only `table` takes a mixture
    of [progress, share] points; the others take plain shares."""
    start: dict[str, float] = field(default_factory=dict)
    """gradual: shares at the stage's beginning; a source left out begins at 0."""
    ramp: float = 0.1
    """gradual: progress at which the shares have become those of `mixture`."""
    shape: str = "linear"
    """gradual, warmup_cooldown, table: how shares move between two points: linear or cosine."""
    steps: list[Any] = field(default_factory=list)
    """staged: list of [progress, shares]; `mixture` holds until the first of them, each until the next."""
    buckets: list[str] = field(default_factory=list)
    """quality_first: sources, best first; difficulty: sources, easiest first. Their joint share stays as it is."""
    opening: float = 0.5
    """quality_first: progress at which the last bucket has its full share; the first has it from the beginning."""
    overlap: float = 0.1
    """difficulty: half the progress over which one bucket hands over to the next."""
    floor: float = 0.1
    """difficulty: part of each bucket's share that is spread evenly over the stage."""
    domain: list[str] = field(default_factory=list)
    """warmup_cooldown: the sources whose joint share rises and falls; the others take the rest."""
    low: float = 0.0
    """warmup_cooldown: joint share of `domain` at the beginning of the warm-up and the end of the cool-down, as a
    part of its full share."""
    warmup: float = 0.1
    """warmup_cooldown: progress at which `domain` has its full share."""
    cooldown: float = 0.0
    """warmup_cooldown: part of the progress, at the end, over which the share of `domain` falls."""


def curriculum_problems(curriculum: CurriculumConfig, mixture: dict[str, Any]) -> list[str]:
    """What is wrong with `curriculum` for a stage of `mixture`; each problem begins with the name of the field."""
    if curriculum.name not in CURRICULA:
        return [f"name: '{curriculum.name}' is unknown; {nearest_of(curriculum.name, CURRICULA)}"]
    reads = CURRICULA[curriculum.name]
    problems = [
        f"{name} is not read by '{curriculum.name}' (it reads {', '.join(reads) or 'nothing'}); take it out"
        for name in _changed(curriculum)
        if name not in reads
    ]
    problems += [
        f"{name}: {getattr(curriculum, name)} is shorter than any stage can resolve; give 0 or at least {SHORTEST:g}"
        for name in ("ramp", "opening", "warmup", "cooldown")
        if name in reads and 0 < getattr(curriculum, name) < SHORTEST
    ]
    if curriculum.shape not in SHAPES:
        problems.append(f"shape: '{curriculum.shape}' is unknown; {nearest(curriculum.shape, SHAPES)}")
    if curriculum.name != "table":
        tables = [name for name, share in mixture.items() if isinstance(share, (list, tuple))]
        problems += [
            f"'{curriculum.name}' needs plain shares, but mixture.{name} is a list of points; "
            "give one share, or take curriculum.name=table"
            for name in tables
        ]
        if tables:
            return problems
    if "start" in reads:
        problems += _share_problems("start", curriculum.start, mixture)
        if not 0 < curriculum.ramp <= 1:
            problems.append(f"ramp: {curriculum.ramp} must lie above 0 and at most 1")
    if "steps" in reads:
        problems += _step_problems(curriculum.steps, mixture)
    if "buckets" in reads:
        problems += _member_problems("buckets", curriculum.buckets, mixture, least=2)
        if not 0 < curriculum.opening <= 1:
            problems.append(f"opening: {curriculum.opening} must lie above 0 and at most 1")
        if not 0 <= curriculum.overlap <= 0.5:
            problems.append(f"overlap: {curriculum.overlap} must lie within 0 to 0.5")
        if not 0 <= curriculum.floor <= 1:
            problems.append(f"floor: {curriculum.floor} must lie within 0 to 1")
    if "domain" in reads:
        problems += _member_problems("domain", curriculum.domain, mixture, least=1)
        if set(curriculum.domain) >= {name for name, share in mixture.items() if _is_share(share) and share > 0}:
            problems.append("domain: it names every source that has a share, so none is left to take the rest")
        for name in ("low", "warmup", "cooldown"):
            if not 0 <= getattr(curriculum, name) <= 1:
                problems.append(f"{name}: {getattr(curriculum, name)} must lie within 0 to 1")
        if curriculum.warmup + curriculum.cooldown > 1:
            problems.append(f"warmup {curriculum.warmup} + cooldown {curriculum.cooldown} exceed 1; lower one of them")
    return problems


def _changed(curriculum: CurriculumConfig) -> list[str]:
    names = []
    for one in fields(curriculum):
        default = one.default if one.default_factory is MISSING else one.default_factory()
        if one.name != "name" and getattr(curriculum, one.name) != default:
            names.append(one.name)
    return names


def _is_share(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def _share_problems(key: str, shares: Any, mixture: dict[str, Any]) -> list[str]:
    if not isinstance(shares, dict) or not shares:
        return [f"{key}: {shares!r} is no mapping of sources to shares"]
    problems = [
        f"{key}: source '{name}' is not in mixture; {nearest(name, mixture)}, or add it there (0 is a share too)"
        for name in shares
        if name not in mixture
    ]
    problems += [f"{key}.{name}: {value!r} is no share" for name, value in shares.items() if not _is_share(value)]
    if not problems and not sum(shares.values()) > 0:
        problems.append(f"{key}: all shares are 0; give one source a positive share")
    return problems


def _step_problems(steps: list[Any], mixture: dict[str, Any]) -> list[str]:
    if not steps:
        return ["steps: 'staged' needs at least one [progress, shares]"]
    problems, last = [], 0.0
    for number, step in enumerate(steps):
        if not isinstance(step, (list, tuple)) or len(step) != 2 or not _is_share(step[0]):
            problems.append(f"steps.{number}: {step!r} is no [progress, shares]")
            continue
        if not last < step[0] < 1:
            problems.append(f"steps.{number}: progress {step[0]} must lie above {last} and below 1")
        last = step[0]
        problems += _share_problems(f"steps.{number}", step[1], mixture)
    return problems


def _member_problems(key: str, members: list[str], mixture: dict[str, Any], least: int) -> list[str]:
    problems = [
        f"{key}: source '{name}' is not in mixture; {nearest(name, mixture)}" for name in members if name not in mixture
    ]
    problems += [
        f"{key}: source '{name}' has share 0 in mixture and would never be read; give it a share or take it out"
        for name in members
        if mixture.get(name) == 0
    ]
    if len(set(members)) < least or len(set(members)) != len(members):
        problems.append(f"{key}: {list(members)} must name at least {least} source(s), each once")
    return problems
