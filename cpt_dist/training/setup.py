"""Putting a run together, and taking it up again where its newest checkpoint left it.

The order of things matters: what can be refused from small files is refused before a model is loaded.
"""

from __future__ import annotations

import platform
import sys
import time
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

import cpt_dist
from cpt_dist.checkpoint.open_store import checkpoint_store
from cpt_dist.checkpoint.saver import Saver
from cpt_dist.config import CptConfig
from cpt_dist.data.ledger_entry import LedgerEntry, write_ledger
from cpt_dist.data.view_names import source_of
from cpt_dist.engine.build import build_engine
from cpt_dist.engine.distributed import World
from cpt_dist.engine.precision import resolve_precision
from cpt_dist.model.load import load_model
from cpt_dist.model.model_files import copy_model_files
from cpt_dist.model.rope_switch import rope_of
from cpt_dist.run_directory import RunDirectory
from cpt_dist.training.callbacks import default_callbacks
from cpt_dist.training.first_rank import on_first
from cpt_dist.training.growth import saved_views, sources_and_order
from cpt_dist.training.guards import Guards
from cpt_dist.training.preflight import open_sources
from cpt_dist.training.run import Run, Totals
from cpt_dist.training.take_down import take_down


def set_up(config: CptConfig, world: World) -> Run:
    """A run ready for `fit`, at sample 0 or where the newest checkpoint of its run directory left it."""
    torch.manual_seed(config.seed)
    directory = RunDirectory(config.run_dir)
    store = checkpoint_store(config)
    store.tidy()
    step = store.newest_whole(config.checkpoint.on_damage, config.checkpoint.verify)
    if step is not None and step == store.steps()[-1]:
        on_first(world, store.retire_rest)
        store.tidy()
    saved = store.trainer(step) if step is not None else None
    sources, order, grown = sources_and_order(config, open_sources(config), saved)
    world.barrier()  # a rank that read the ledger after the entry was written would see no growth
    if grown is not None:
        on_first(world, lambda: write_ledger(directory.ledger, order.entries))
    dtype, reason = resolve_precision(config.engine.precision, world.device)
    if not (world.is_first and sys.stderr.isatty()):
        disable_progress_bar()
    model = load_model(config.model, dtype=torch.float32)
    engine = build_engine(model, config, world, dtype)
    run = Run(
        config=config,
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
    )
    position = saved["position"] if saved is not None else 0
    engine.context.enter(config, order.stage_of(min(position, order.num_samples - 1)))
    on_first(world, lambda: _fill(directory, run))
    _announce(run, reason, step, grown)
    if step is not None:
        resume(run, step)
    take_down(run)
    run.callbacks = default_callbacks(run)
    return run


def _fill(directory: RunDirectory, run: Run) -> None:
    """Write what a run directory has before the first step."""
    directory.create(run.config)
    directory.keep_order(run.order.identity)
    if not directory.model_files.exists():
        copy_model_files(run.config.model.path, directory.model_files, run.config.data.tokenizer)


def resume(run: Run, step: int) -> None:
    """Take weights, moments, position and counters from the checkpoint of `step`, whatever engine wrote it."""
    trainer = run.store.trainer(step)
    tensors = run.engine.state_tensors()
    run.store.load(step, tensors)
    run.engine.state_loaded(tensors, trainer["optimizer_steps"])
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
    position = "from the base model" if resumed_step is None else f"resumed from step {resumed_step}"
    sharing = f", {context.size} to a row ({context.method})" if context.size > 1 else ""
    print(
        f"{config.run_dir}: {position}; {config.engine.name}{stage} on {run.world.size} rank(s){sharing}, "
        f"{precision_reason}",
        flush=True,
    )
