"""The checks of a stage that need nothing but its values, and those of the list of stages as a whole.

They belong to `cpt_dist.validation`, which raises what is found here together with everything else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cpt_dist.config import (
    CARRY,
    PACKINGS,
    POSITIONS,
    RESET,
    CptConfig,
    SourceConfig,
    StageConfig,
    parse_quantity,
)
from cpt_dist.curriculum_config import curriculum_problems
from cpt_dist.errors import UserError, nearest, nearest_of
from cpt_dist.fork_config import fork_problems
from cpt_dist.gate_config import gate_problems, may_fork
from cpt_dist.gate_validation import measurement_problems
from cpt_dist.length_upsampling import strata_of_sources
from cpt_dist.mixture_knots import mixture_knots
from cpt_dist.nested_mixture import flat_mixture, inner_mixture, nested_problems, outer_mixture
from cpt_dist.plans_of_run import all_plans, all_stages
from cpt_dist.rope_config import rope_problems
from cpt_dist.schedule_config import schedule_problems
from cpt_dist.schedules import stage_schedules
from cpt_dist.strata_config import StrataConfig


def one_of(problems: list[str], key: str, value: str, allowed: tuple[str, ...]) -> None:
    """Add a problem where `value` is none of the `allowed`."""
    if value not in allowed:
        problems.append(f"{key}: '{value}' is unknown; {nearest_of(value, allowed)}")


def plan_problems(config: CptConfig) -> list[str]:
    """What is wrong with the stages and alternatives, one by one and together."""
    problems: list[str] = []
    for index, stage in enumerate(config.stages):
        problems += stage_problems(f"stages.{index} ('{stage.name}')", stage, config)
    for name, other in config.alternatives.items():
        for index, stage in enumerate(other.stages):
            problems += stage_problems(f"alternatives.{name}.stages.{index} ('{stage.name}')", stage, config)
    names = [stage.name for stage in all_stages(config)]
    problems += [f"stages: the name '{n}' is used twice; rename one" for n in {n for n in names if names.count(n) > 1}]
    problems += [
        f"alternatives.{name}: it has no stages; give it some, or leave fork_to out to skip the stage"
        for name, other in config.alternatives.items()
        if not other.stages
    ]
    last = config.stop_after_stage
    if last is not None and last not in names:
        problems.append(f"stop_after_stage: there is no stage '{last}'; {nearest(last, names)}")
    problems += fork_problems(config.fork, config.start_at_stage, [stage.name for stage in config.stages])
    if not any("schedule" in problem or "used twice" in problem for problem in problems):
        for where, stages in all_plans(config).items():
            try:
                stage_schedules(replace(config, stages=stages))
            except UserError as error:
                problems += [where + problem for problem in error.problems if problem not in problems]
    return problems


def stage_problems(key: str, stage: StageConfig, config: CptConfig) -> list[str]:
    """What is wrong with a stage; `key` names it in the lines."""
    problems: list[str] = []
    sources = config.data.sources
    if stage.seq_len < 2:
        problems.append(f"{key}.seq_len: {stage.seq_len} must be at least 2")
    problems += _length_problems(key, stage, sources)
    try:
        batch = parse_quantity(stage.batch_tokens, f"{key}.batch_tokens")
        if stage.seq_len > 0 and batch % stage.seq_len:
            low = max(1, batch // stage.seq_len) * stage.seq_len
            problems.append(
                f"{key}.batch_tokens: {batch} is no multiple of seq_len {stage.seq_len}; "
                f"nearest: {low} or {low + stage.seq_len}"
            )
    except UserError as error:
        problems += error.problems
    problems += _mixture_problems(key, stage, strata_of_sources(sources, all_stages(config)))
    for name in stage.mixture:
        if name not in sources:
            problems.append(f"{key}.mixture: source '{name}' is not in data.sources; {_near_source(name, sources)}")
    one_of(problems, f"{key}.packing", stage.packing, PACKINGS)
    one_of(problems, f"{key}.positions", stage.positions, POSITIONS)
    one_of(problems, f"{key}.optimizer", stage.optimizer, (CARRY, RESET))
    if not [pattern for pattern in stage.trainable if not pattern.startswith("!")]:
        problems.append(f'{key}.trainable: {list(stage.trainable)} takes no parameter in; begin with "*" for all')
    if stage.schedule is not None:
        problems += [f"{key}.schedule.{one}" for one in schedule_problems(stage.schedule)]
    if stage.rope is not None:
        problems += [f"{key}.rope.{one}" for one in rope_problems(stage.rope)]
    if stage.gate is not None:
        problems += [f"{key}.gate.{one}" for one in gate_problems(stage.gate, sources, config.alternatives)]
        problems += [f"{key}.gate: {one}" for one in measurement_problems(stage.gate, config)]
    makes_names = stage.keep or stage.consolidate or may_fork(stage.gate)
    if makes_names and not re.fullmatch(r"[\w.-]*[A-Za-z_][\w.-]*", stage.name):
        problems.append(
            f"{key}.name: '{stage.name}' names a checkpoint or a folder; use letters, digits, '_', '-' and '.'"
        )
    return problems


def _length_problems(key: str, stage: StageConfig, sources: dict[str, SourceConfig]) -> list[str]:
    if (stage.tokens is None) == (stage.epochs is None):
        given = "neither tokens nor epochs is" if stage.tokens is None else "tokens and epochs are both"
        return [f"{key}: {given} given; give one of them, such as tokens: 2B or epochs: 1"]
    if stage.tokens is not None:
        try:
            parse_quantity(stage.tokens, f"{key}.tokens")
        except UserError as error:
            return error.problems
        return []
    if isinstance(stage.epochs, Mapping):
        problems = [
            f"{key}.epochs: source '{name}' is not in mixture; {nearest(str(name), stage.mixture)}"
            for name in stage.epochs
            if name not in stage.mixture
        ]
        if not stage.epochs:
            problems.append(f"{key}.epochs: it names no source; write {{law: 2}}, or a number for all domain sources")
    else:
        problems = []
        named = [sources[name].role for name in stage.mixture if name in sources]
        if named and "domain" not in named:
            problems.append(
                f"{key}.epochs: a number counts domain sources, and mixture names none; write {{source: epochs}}"
            )
    values = stage.epochs.values() if isinstance(stage.epochs, Mapping) else [stage.epochs]
    bad = [value for value in values if not _is_positive(value)]
    return problems + [f"{key}.epochs: {value!r} must be a positive number, such as 2 or 0.5" for value in bad]


def _near_source(name: str, sources: Mapping[str, SourceConfig]) -> str:
    return nearest(name, sources) if sources else "none is; add data=NAME, or write those that were prepared there"


def _is_positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


def _mixture_problems(key: str, stage: StageConfig, strata: dict[str, StrataConfig | None]) -> list[str]:
    problems = [f"{key}: {problem}" for problem in nested_problems(stage.mixture, strata)]
    if problems:
        return problems
    for source in ("", *stage.mixture):
        inside = inner_mixture(stage.mixture, source) if source else outer_mixture(stage.mixture)
        try:
            mixture_knots(inside if inside is not None else {"": 1.0})
        except UserError as error:
            where = f"{key}: mixture.{source}: " if source else f"{key}: "
            problems.extend(f"{where}{problem}" for problem in error.problems)
    if stage.curriculum is not None:
        flat, unknown = flat_mixture(stage.mixture, stage.curriculum, strata)
        found = [*unknown, *curriculum_problems(stage.curriculum, flat)]
        problems.extend(f"{key}.curriculum.{problem}" for problem in found)
    return problems
