"""The preview of a whole run: stages, steps, batches, learning rate, mixture, RoPE, epochs, checkpoints, evaluations.

Every number comes from the functions that training itself asks, from the configuration, the base model's config.json
and the manifests of the shards; neither torch nor a weight is loaded. What is missing of those is named in `missing`
and leaves its columns empty, so a plan can be looked at before any data is prepared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, fields, is_dataclass, replace
from itertools import takewhile
from math import ceil, floor
from pathlib import Path
from typing import Any

from cpt_dist.config import CptConfig, StageConfig, parse_quantity
from cpt_dist.data.order import SampleOrder
from cpt_dist.data.run_order import stages_of_run
from cpt_dist.data.stage_plan import SourceRows, StagePlan
from cpt_dist.data.views import views_of
from cpt_dist.errors import UserError
from cpt_dist.evaluation_schedule import is_due
from cpt_dist.model.folder import read_model_config
from cpt_dist.nested_mixture import names_strata, outer_mixture
from cpt_dist.planning.data_plan import NUM_RATES, open_manifests, plan_data, timeline
from cpt_dist.planning.distillation_plan import plan_distillation
from cpt_dist.planning.rope_plan import plan_ropes
from cpt_dist.plans_of_run import all_plans, all_stages
from cpt_dist.schedule_config import SCHEDULES, ScheduleConfig
from cpt_dist.schedules import run_learning_rate, stage_schedules

_SHOWN_FIELDS = {
    *("name", "tokens", "seq_len", "batch_tokens", "mixture", "curriculum", "packing", "positions", "schedule", "rope"),
}
"""Fields of a stage that the plan has a place for; each other one that is set shows up under `settings`."""


def plan_run(config: CptConfig) -> dict[str, Any]:
    """The preview as JSON values, of the parts that `plan.what` names: all, schedule or rope (data is `plan_data`).

    Raises UserError for what the configuration itself makes impossible; a missing model or missing shards are no
    error, save where rope is asked for alone.
    """
    what = config.plan.what
    given, config = config, _with_lengths(config)
    plans = [StagePlan.from_config(stage) for stage in config.stages]
    missing: list[str] = []
    data = _unless_missing(missing, "data", lambda: _data(config)) if what == "all" else None
    ropes = None
    if what == "rope":
        ropes = _ropes(config)
    elif what == "all":
        ropes = _unless_missing(missing, "model", lambda: _ropes(config))
    ends = _ends(plans)
    last_step = _last_step(config, ends)
    stages = [
        {
            **_stage(config, config.stages[index], plan, ends[index] - plan.num_steps),
            "rope": ropes[index] if ropes is not None else None,
            "checkpoints": _checkpoints(config, ends[index] - plan.num_steps, ends[index], last_step),
            "evaluations": _evaluations(config, ends[index] - plan.num_steps, ends[index], last_step, ends[-1]),
            "later_job": ends[index] > last_step,
        }
        for index, plan in enumerate(plans)
    ]
    rate = run_learning_rate(config)
    _add_schedules(config, stages, plans)
    if what == "all":
        _add_mixture(config, stages, data, missing, rate)
    return {
        "kind": "run",
        "what": what,
        "seed": config.seed,
        "model": config.model.path,
        "world_size": config.plan.world_size or None,
        "total": {
            "steps": ends[-1],
            "samples": sum(plan.num_samples for plan in plans),
            "tokens_of_full_rows": sum(stage["tokens"] for stage in stages),
            "tokens": data["total"]["tokens"] if data is not None else None,
            "checkpoints": sum(len(stage["checkpoints"]) for stage in stages),
            "evaluations": sum(len(stage["evaluations"]) for stage in stages),
            "last_step_of_this_job": last_step,
        },
        "lr_multipliers": dict(config.optimizer.lr_multipliers),
        "keeps": {
            name: getattr(config.checkpoint, name) for name in ("keep_last", "keep_every", "keep_best", "keep_best_of")
        },
        "stages": stages,
        "distillation": plan_distillation(config, stages),
        "alternatives": _alternatives(given, missing) if what != "rope" else [],
        "data": data,
        "missing": missing,
        "warnings": _warnings(config, stages, data),
    }


def _add_schedules(config: CptConfig, stages: list[dict[str, Any]], plans: list[StagePlan]) -> None:
    rate, schedules = run_learning_rate(config), stage_schedules(config)
    for index, (record, plan) in enumerate(zip(stages, plans, strict=True)):
        record["schedule"] = _schedule(schedules[index], plan, record["first_step"] - 1, _rate_of(rate, index))


def _alternatives(config: CptConfig, missing: list[str]) -> list[dict[str, Any]]:
    """What follows where a gate forks the plan: of each way the stages that the configured plan doesn't begin with."""
    (_, first), *others = all_plans(config).items()
    found = []
    for where, stages in others:
        shared = sum(1 for _ in takewhile(lambda pair: pair[0].name == pair[1].name, zip(first, stages, strict=False)))
        way = replace(config, stages=stages)
        records = _unless_missing(missing, where.rstrip(": "), lambda way=way: _outline(way))  # type: ignore[misc]
        found.append({"way": where.rstrip(": "), "stages": records[shared:] if records is not None else None})
    return found


def _outline(config: CptConfig) -> list[dict[str, Any]]:
    """Lengths, batches, learning rates and RoPE of the stages, without what they read."""
    config = _with_lengths(config)
    plans = [StagePlan.from_config(stage) for stage in config.stages]
    ends = _ends(plans)
    ropes = _ropes(config) if (Path(config.model.path) / "config.json").is_file() else [None] * len(plans)
    stages = [
        {**_stage(config, config.stages[index], plan, ends[index] - plan.num_steps), "rope": ropes[index]}
        for index, plan in enumerate(plans)
    ]
    _add_schedules(config, stages, plans)
    for record, stage in zip(stages, config.stages, strict=True):
        record["mixture"] = stage.mixture
    return stages


def _unless_missing(missing: list[str], what: str, make: Callable[[], Any]) -> Any:
    try:
        return make()
    except UserError as error:
        missing += [f"{what}: {problem}" for problem in error.problems]
        return None


def _data(config: CptConfig) -> dict[str, Any]:
    if not config.data.shards:
        raise UserError("data.shards is not given, so epochs and tokens of each source are unknown")
    return plan_data(config)


def _ropes(config: CptConfig) -> list[dict[str, Any] | None]:
    if not config.model.path:
        raise UserError("model.path is not given, so the RoPE is unknown")
    return plan_ropes(read_model_config(config.model.path), config.stages)


def _ends(plans: list[StagePlan]) -> list[int]:
    """The last step of each stage, steps counted from 1 through all stages."""
    ends, at = [], 0
    for plan in plans:
        at += plan.num_steps
        ends.append(at)
    return ends


def _last_step(config: CptConfig, ends: list[int]) -> int:
    """The step after which this job ends."""
    if config.stop_after_stage is None:
        return ends[-1]
    names = [stage.name for stage in config.stages]
    return ends[names.index(config.stop_after_stage)] if config.stop_after_stage in names else ends[-1]


def _checkpoints(config: CptConfig, before: int, end: int, last: int) -> list[int]:
    """Steps of a stage that make a checkpoint: as configured, and its last."""
    steps = _marks(config.checkpoint.every_steps, before, end, last)
    return sorted({*steps, end}) if end <= last else steps


def _with_lengths(config: CptConfig) -> CptConfig:
    """`config` with the tokens of stages that are given in epochs, which the shards say."""
    if all(stage.epochs is None for stage in config.stages):
        return config
    stages = stages_of_run(config, views_of(open_manifests(config), config.data.sources, all_stages(config)))
    epochs = {stage.name: stage.epochs for stage in all_stages(config)}
    return replace(config, stages=[replace(stage, epochs=epochs[stage.name]) for stage in stages])


def _marks(every: int, before: int, end: int, last: int) -> list[int]:
    """Steps of (before, end] that are multiples of `every`, or the last of the job; 0: only that."""
    steps = set(range(before - before % every + every, end + 1, every)) if every else set()
    return sorted(step for step in steps | ({last} if before < last <= end else set()) if step <= last)


def _evaluations(config: CptConfig, before: int, end: int, last: int, num_steps: int) -> list[int]:
    """Steps after which held-out text is scored inside the job; 0: before the first step."""
    if not config.evaluation.during_training:
        return []
    own = config.evaluation
    steps = [step for step in range(before + 1, end + 1) if step <= last]
    due = [step for step in steps if step == last or is_due(own.schedule, own.every_steps, step, num_steps)]
    return [0] * (before == 0) + due


def _stage(config: CptConfig, stage: StageConfig, plan: StagePlan, before: int) -> dict[str, Any]:
    return {
        "name": plan.name,
        "first_step": before + 1,
        "last_step": before + plan.num_steps,
        "steps": plan.num_steps,
        "samples": plan.num_samples,
        "tokens_asked": parse_quantity(stage.tokens or "", "tokens"),
        "tokens": plan.num_samples * plan.seq_len,
        "seq_len": plan.seq_len,
        "batch_tokens": plan.batch_samples * plan.seq_len,
        "batch_samples": plan.batch_samples,
        "packing": plan.packing,
        "positions": plan.positions,
        "ranks": _ranks(config, stage, plan),
        "settings": _settings(stage),
    }


def _settings(stage: StageConfig) -> dict[str, Any]:
    """Every further field of the stage that isn't at its default, whatever it is called."""
    found, plain = {}, StageConfig()
    for one in fields(stage):
        value = getattr(stage, one.name)
        if one.name not in _SHOWN_FIELDS and value is not None and value != getattr(plain, one.name) and value != {}:
            found[one.name] = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    return found


def _ranks(config: CptConfig, stage: StageConfig, plan: StagePlan) -> dict[str, int] | None:
    """How a batch is shared out in the planned world; None where no world size is given.

    Ranks that share one sequence (context parallelism) read the same rows. Raises UserError for too many ranks.
    """
    world_size = config.plan.world_size
    if not world_size:
        return None
    together = stage.context_parallel or config.engine.context_parallel
    if world_size % together:
        raise UserError(
            f"plan.world_size: {world_size} is no multiple of the context_parallel {together} of stage "
            f"'{stage.name}'; nearest: {max(1, world_size // together) * together}"
        )
    readers = world_size // together
    plan.check_world_size(world_size, together)
    rows = ceil(plan.batch_samples / readers)
    return {
        "world_size": world_size,
        "readers": readers,
        "rows_of_a_rank": rows,
        "micro_batch": config.engine.micro_batch,
        "accumulation": ceil(rows / config.engine.micro_batch),
    }


def _rate_of(rate: Callable[[int, float], float], index: int) -> Callable[[float], float]:
    return lambda progress: rate(index, progress)


def _schedule(schedule: ScheduleConfig, plan: StagePlan, before: int, rate: Callable[[float], float]) -> dict[str, Any]:
    """The learning rate of the stage's steps: the curve, its first, highest, lowest and last value."""
    steps = plan.num_steps
    asked = {1 + (steps - 1) * at // (NUM_RATES - 1) for at in range(NUM_RATES)}
    cycles = schedule.cycles if "cycles" in SCHEDULES[schedule.name] else 1
    for cycle in range(cycles):  # a curve rises only in a warm-up, so a step beside the end of one is the highest
        for turn in ((cycle + schedule.warmup) / cycles, (cycle + 1) / cycles):
            asked |= {floor(turn * steps), ceil(turn * steps)}
    curve = [[before + step, rate(step / steps)] for step in sorted(asked) if 1 <= step <= steps]
    peak = max(curve, key=lambda point: (point[1], -point[0]))
    reads = ("peak_lr", "start_lr_ratio", "warmup", *SCHEDULES[schedule.name])
    return {
        "name": schedule.name,
        "parameters": {name: getattr(schedule, name) for name in reads},
        "first": curve[0][1],
        "peak": peak[1],
        "peak_step": peak[0],
        "last": curve[-1][1],
        "warmup_steps": schedule.warmup * steps,
        "learning_rates": curve,
    }


def _add_mixture(
    config: CptConfig,
    stages: list[dict[str, Any]],
    data: dict[str, Any] | None,
    missing: list[str],
    rate: Callable[[int, float], float],
) -> None:
    """Shares over time: those of the run's order, or without shards those that full rows would have."""
    if data is not None:
        for record, read in zip(stages, data["stages"], strict=True):
            record |= {"timeline": read["timeline"], "sources": read["sources"]}
        return
    order = _unless_missing(missing, "mixture", lambda: _order_of_full_rows(config))
    for index, record in enumerate(stages):
        record["sources"] = None
        record["timeline"] = timeline(order, index, _rate_of(rate, index)) if order is not None else None


def _order_of_full_rows(config: CptConfig) -> SampleOrder:
    """The sample order over sources whose rows are all full and never run out; their strata are left out."""
    plans = []
    for stage in config.stages:
        if stage.curriculum is not None and names_strata(stage.curriculum):
            raise UserError(f"stage '{stage.name}': its curriculum moves strata, whose sizes only the shards know")
        plans.append(replace(StagePlan.from_config(stage), mixture=outer_mixture(stage.mixture)))
    most = sum(plan.num_samples for plan in plans)
    rows = {plan.rows_key: (most, most * plan.seq_len) for plan in plans}
    names = [name for name in config.data.sources if any(name in stage.mixture for stage in config.stages)]
    return SampleOrder(plans, [SourceRows(name, "full rows", rows) for name in names], config.seed)


def _warnings(config: CptConfig, stages: list[dict[str, Any]], data: dict[str, Any] | None) -> list[str]:
    found = list(data["warnings"]) if data is not None else []
    for stage in stages:
        if stage["later_job"]:
            found.append(f"stage '{stage['name']}' is left to a later job (stop_after_stage={config.stop_after_stage})")
        pairs = (stage["rope"] or {}).get("pairs", {})
        if pairs.get("extrapolated"):
            found.append(
                f"stage '{stage['name']}': {pairs['extrapolated']} of {sum(pairs.values())} pairs of dimensions meet "
                f"angles at seq_len {stage['seq_len']} that the base model never saw; a larger rope.theta or "
                "rope.factor avoids it"
            )
    return found
