"""Putting a run together, and taking it up again where its newest checkpoint left it.

The order of things matters: what can be refused from small files is refused before a model is loaded.
"""

from __future__ import annotations

import platform
import time
from dataclasses import asdict, replace
from typing import Any

import torch

import cpt_dist
from cpt_dist.checkpoint.open_store import checkpoint_store
from cpt_dist.checkpoint.saver import Saver
from cpt_dist.checkpoint.store import CheckpointStore
from cpt_dist.config import RESET, CptConfig, StageConfig
from cpt_dist.data.ledger_entry import LedgerEntry, read_ledger, write_ledger
from cpt_dist.data.order import SampleOrder
from cpt_dist.data.run_order import sample_order, stages_of_run
from cpt_dist.data.skip import Skip
from cpt_dist.data.stage_epochs import kept_stages, read_stages
from cpt_dist.data.view_names import source_of
from cpt_dist.engine.build import build_engine, shards_weights
from cpt_dist.engine.distributed import World
from cpt_dist.engine.precision import resolve_precision
from cpt_dist.engine.updates import UpdateHistory, check_trainable
from cpt_dist.errors import UserError
from cpt_dist.files import write_json
from cpt_dist.gate_config import BASE, RUN_START
from cpt_dist.model.model_files import copy_model_files
from cpt_dist.model.rope_switch import rope_of
from cpt_dist.plans_of_run import all_stages
from cpt_dist.run_directory import RunDirectory
from cpt_dist.training.branches import give_up_branches
from cpt_dist.training.callbacks import default_callbacks
from cpt_dist.training.distillation import Distillation, add_teacher
from cpt_dist.training.first_rank import on_first
from cpt_dist.training.forking import Parent, keep_fork, parent_of, read_fork, start_entry
from cpt_dist.training.gate_measurements import prepare
from cpt_dist.training.gates import keep_baseline
from cpt_dist.training.growth import saved_views, sources_and_order
from cpt_dist.training.guards import Guards
from cpt_dist.training.load_together import load_for
from cpt_dist.training.preflight import open_sources
from cpt_dist.training.run import Run, Totals
from cpt_dist.training.stage_edges import StageEdges
from cpt_dist.training.take_down import take_down
from cpt_dist.training.teacher_files import check_same_teacher, teacher_identity


def set_up(config: CptConfig, world: World) -> Run:
    """A run ready for `fit`, at sample 0 or where the newest checkpoint of its run directory left it."""
    torch.manual_seed(config.seed)
    directory = RunDirectory(config.run_dir)
    store = checkpoint_store(config)
    on_first(world, lambda: give_up_branches(store, read_ledger(directory.ledger)))
    store.tidy()
    step = store.newest_whole(config.checkpoint.on_damage, config.checkpoint.verify)
    if step is not None and step == store.steps()[-1]:
        on_first(world, store.retire_rest)
        store.tidy()
    teacher = on_first(world, lambda: teacher_identity(config))
    if step is not None:
        check_same_teacher(teacher, store.trainer(step))
    parent = _parent(config, world) if step is None else None
    continued = None if config.start_at_stage is not None else parent
    saved = store.trainer(step) if step is not None else continued.saved if continued is not None else None
    sources, order, grown = sources_and_order(config, open_sources(config), saved, continued)
    stages = stages_of_run(config, sources, order.entries)
    if step is None and (start := _start_entry(config, stages, order)) is not None:
        order = sample_order(config, sources, [*order.entries, start])
    world.barrier()  # a rank that read the ledger after the entry was written would see no growth
    if grown is not None or (step is None and order.entries):
        on_first(world, lambda: write_ledger(directory.ledger, order.entries))
    distillation = Distillation(config, sources) if config.distillation is not None else None
    dtype, reason = resolve_precision(config.engine.precision, world.device)
    compute = (world.device.type, dtype)
    model = load_for(world, config.model, config.kernels, compute, shards_weights(config.engine))
    names = [model.hf_name(name) for name, _ in model.named_parameters()]
    check_trainable([(stage.name, stage.trainable) for stage in all_stages(config)], names)
    engine = build_engine(model, config, world, dtype)
    add_teacher(engine, config)
    run = Run(
        config=replace(config, stages=stages),
        given=config,
        parent=read_fork(config),
        world=world,
        directory=directory,
        sources=sources,
        order=order,
        engine=engine,
        store=store,
        guards=Guards(config.guards),
        saver=Saver(store, config.checkpoint.asynchronous, world.local_size),
        base_rope=rope_of(model),
        totals=Totals.zero(len(sources)),
        distillation=distillation,
        teacher=teacher,
    )
    position = saved["position"] if saved is not None else 0
    engine.context.enter(run.config, order.stage_of(min(position, order.num_samples - 1)))
    on_first(world, lambda: _fill(directory, run))
    _announce(run, reason, step, grown)
    prepare(run, position)
    keep_baseline(run, BASE)
    if parent is None and run.parent is None:
        keep_baseline(run, RUN_START)
    if step is not None:
        resume(run, step)
    else:
        _begin(run, parent)
    take_down(run)
    run.callbacks = default_callbacks(run)
    run.edges = StageEdges(run)
    return run


def _parent(config: CptConfig, world: World) -> Parent | None:
    """What a run that has no checkpoint yet is forked from, the same on every rank and at each start."""
    if config.fork.run_dir is None:
        return None

    def keep() -> list[str]:
        try:
            parent = parent_of(config)
            assert parent is not None
            keep_fork(config, parent)
        except UserError as error:
            return error.problems
        return []

    if problems := on_first(world, keep):
        raise UserError(problems)
    parent = parent_of(config)
    assert parent is not None
    parent.store.verify(parent.step, config.checkpoint.verify)
    return parent


def _start_entry(config: CptConfig, stages: list[StageConfig], order: SampleOrder) -> Skip | None:
    if config.start_at_stage is None:
        return None
    n = order.stage_starts[[stage.name for stage in stages].index(config.start_at_stage)]
    where_from = config.model.path if config.fork.run_dir is None else f"{config.fork.run_dir} {config.fork.step}"
    return start_entry(config.start_at_stage, n, order.entries, where_from)


def _begin(run: Run, parent: Parent | None) -> None:
    """Put a run that has no checkpoint yet where it begins: at sample 0 unless it is forked or begins later."""
    if parent is not None:
        resume(run, parent.step, parent.store)
        if run.given.fork.optimizer == RESET:
            run.engine.reset_optimizer()
    if run.given.start_at_stage is not None:
        names = [stage.name for stage in run.config.stages]
        run.position = run.order.stage_starts[names.index(run.given.start_at_stage)]
        run.totals = Totals.zero(len(run.sources))
        run.totals.skipped_steps = run.step
        run.guards.restore({})
    run.origin = run.position
    if parent is not None:
        if run.position:
            run.enter_rope(run.order.stage_of(run.position - 1))
        keep_baseline(run, RUN_START)


def _fill(directory: RunDirectory, run: Run) -> None:
    """Write what a run directory has before the first step."""
    directory.create(run.given)
    directory.keep_order(run.order.identity)
    if kept := kept_stages(run.given, run.config.stages):
        write_json(directory.stages, read_stages(directory.stages) | kept)
    if not directory.model_files.exists():
        copy_model_files(run.config.model.path, directory.model_files, run.config.data.tokenizer)


def resume(run: Run, step: int, store: CheckpointStore | None = None) -> None:
    """Take weights, moments, position and counters from the checkpoint of `step`, whatever engine wrote it.

    `store` is where it lies (default: in the run's own).
    """
    store = store or run.store
    trainer = store.trainer(step)
    tensors = run.engine.state_tensors()
    store.load(step, tensors)
    run.engine.state_loaded(tensors, UpdateHistory.from_trainer(trainer))
    run.position = trainer["position"]
    run.guards.restore(trainer.get("guards", {}))
    # A checkpoint of a version that didn't count samples was made by the same order, so they are what it says; one of
    # a version without take-downs has skipped nothing.
    nothing = [0] * len(run.order.source_names)
    before = {"samples_by_source": run.order.counts(run.position).tolist(), "target_tokens_by_source": None}
    before |= {"skipped_pieces_by_source": nothing, "skipped_tokens_by_source": nothing}
    names = saved_views(trainer) or run.order.source_names
    run.totals = Totals(**before | _by_present_source(trainer["totals"], names, run.order.source_names))


def _by_present_source(totals: dict[str, Any], saved: list[str], present: list[str]) -> dict[str, Any]:
    """Saved counters, [source] in the order of `saved`, in that of `present`: a new generation begins with 0."""
    result = {}
    for key, value in totals.items():
        by_name = dict(zip(saved, value, strict=True)) if isinstance(value, list) else {}
        result[key] = [by_name.get(name, 0) for name in present] if isinstance(value, list) else value
    return result


def _distillation_record(run: Run) -> dict[str, Any]:
    if run.given.distillation is None or run.teacher is None:
        return {}
    return {"distillation": asdict(run.given.distillation) | {"teacher": run.teacher}}


def _announce(run: Run, precision_reason: str, resumed_step: int | None, grown: LedgerEntry | None) -> None:
    if not run.world.is_first:
        return
    config, context = run.config, run.engine.context.now
    record: dict[str, Any] = {
        "kind": "run" if resumed_step is None else "resume",
        "step": resumed_step or 0,
        "time": time.time(),
        "engine": config.engine.name,
        "zero_stage": config.engine.zero_stage if config.engine.name == "zero" else None,
        "world_size": run.world.size,
        "context_parallel": context.size,
        "device": str(run.world.device),
        "threads": torch.get_num_threads(),
        "precision": precision_reason,
        "model": config.model.path,
        "num_parameters": run.engine.model.num_parameters,
        "sources": {source.name: source.fingerprint for source in run.sources},
        "roles": {source_of(source.name): source.role for source in run.sources},
        "order": run.order.fingerprint,
        "num_steps": run.num_steps,
        **({"forked_from": run.parent} if run.parent is not None else {}),
        **_distillation_record(run),
        "versions": {"cpt_dist": cpt_dist.__version__, "torch": torch.__version__, "python": platform.python_version()},
    }
    run.directory.append_metrics(record)
    if grown is not None:
        entry = {"n_start": grown.n_start, "generations": grown.generations, "reason": grown.reason}
        run.directory.append_metrics({"kind": "ledger", "step": resumed_step or 0, **entry, "taken": True})
        print(f"from sample {grown.n_start} on: {grown.reason}", flush=True)
    for warning in run.order.warnings():
        print(f"warning: {warning}", flush=True)
    stage = f" {config.engine.zero_stage}" if config.engine.name == "zero" else ""
    begin = "from the base model"
    if run.parent is not None:
        begin = f"forked from step {run.parent['step']} of {run.parent['run_dir']}"
    if config.start_at_stage is not None:
        begin += f", at stage '{config.start_at_stage}'"
    position = begin if resumed_step is None else f"resumed from step {resumed_step}"
    sharing = f", {context.size} to a row ({context.method})" if context.size > 1 else ""
    print(
        f"{config.run_dir}: {position}; {config.engine.name}{stage} on {run.world.size} rank(s){sharing}, "
        f"{precision_reason}",
        flush=True,
    )
