"""What can be refused before a model is loaded: from the model's config.json, the tokenizer and the shards.

It imports nothing heavy, so a mistake is reported at once. It computes nothing.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from cpt_dist.config import CptConfig
from cpt_dist.context_config import context_rank_problems, stage_context
from cpt_dist.corpus.inputs import find_inputs
from cpt_dist.data.long_documents import short_share_problems
from cpt_dist.data.remote import source_folder
from cpt_dist.data.run_order import sample_order, stages_of_run
from cpt_dist.data.shard_cache import check_cache_holds
from cpt_dist.data.shards import Source, tokenizer_fingerprint
from cpt_dist.data.take_down import read_list
from cpt_dist.data.views import views_of
from cpt_dist.errors import UserError, nearest
from cpt_dist.evaluation.long_context.inputs import ROPE_KEYS
from cpt_dist.evaluation.suites.suite_file import read_suites
from cpt_dist.gate_config import LONG_TASKS, NON_INFERIOR, POSITIONS, SUITES, GateConfig
from cpt_dist.model.folder import check_model_folder, max_positions, read_model_config
from cpt_dist.model.rope import stage_ropes, stage_trained_positions
from cpt_dist.plans_of_run import all_plans, all_stages
from cpt_dist.run_directory import RunDirectory
from cpt_dist.shard_size import check_shard_size
from cpt_dist.training.forking import parent_of, with_beginning
from cpt_dist.training.growth import sources_and_order
from cpt_dist.training.teacher_files import check_teacher_files


def open_sources(config: CptConfig) -> list[Source]:
    """What the stages read: the prepared sources in the order of `data.sources`, each as its strata and generations."""
    used = {name for stage in all_stages(config) for name in stage.mixture}
    expected = tokenizer_fingerprint(config.data.tokenizer)
    problems: list[str] = []
    sources = []
    for name in config.data.sources:
        if name in used:
            try:
                sources.append(Source.open(source_folder(config.data, name), expected, config.data.verify))
            except UserError as error:
                problems += error.problems
    if problems:
        raise UserError(problems)
    views = views_of(sources, config.data.sources, all_stages(config))
    check_cache_holds(config.data, {view.name: view.remote_files for view in views})
    return views


def _newest_trainer(config: CptConfig) -> dict[str, Any] | None:
    """trainer.json of the newest checkpoint; None where there is none to read (`set_up` says what is wrong with it)."""
    found = sorted(RunDirectory(config.run_dir).checkpoints.glob("step-*/trainer.json"))
    try:
        trainer: dict[str, Any] | None = json.loads(found[-1].read_bytes()) if found else None
    except (OSError, ValueError):
        return None
    return trainer if trainer and "order" in trainer else None


def _check_suites(config: CptConfig, gates: Mapping[str, GateConfig]) -> None:
    """Raise UserError for mistakes in suite files, and for suites that a gate names and nobody asks."""
    known = [suite.name for suite in read_suites(config.suites.run)]
    problems = []
    for stage, gate in gates.items():
        margins = gate.margins.get(SUITES) or {}
        problems += [
            f"stage '{stage}' gate.margins.{SUITES}: '{name}' is none of suites.run; {nearest(name, known)}"
            for name in (margins if margins != NON_INFERIOR else ())
            if name not in known
        ]
    if problems:
        raise UserError(problems)


def _learned_position_problems(config: CptConfig, gates: Mapping[str, GateConfig]) -> list[str]:
    """Lengths that gates measure at and a model without RoPE has no positions for."""
    model = read_model_config(config.model.path)
    limit = max_positions(model)
    if limit is None or any(model.get(key) for key in ROPE_KEYS):
        return []
    return [
        f"stage '{stage}' gate.margins.{measurement}: '{name}' is beyond the {limit} positions that the model has "
        "learned; take it out"
        for stage, gate in gates.items()
        for measurement in (POSITIONS, LONG_TASKS)
        for name in gate.margins.get(measurement) or {}
        if int(re.split("[-/]", name)[-1]) > limit
    ]


def check_files(config: CptConfig) -> None:
    """Raise UserError with everything that the files which `config` names make impossible."""
    problems: list[str] = []
    world_size = int(os.environ.get("WORLD_SIZE", 1))

    def collect(check: Callable[..., object], *arguments: object) -> None:
        try:
            check(*arguments)
        except UserError as error:
            problems.extend(error.problems)

    def check_order() -> None:
        saved = _newest_trainer(config)
        parent = parent_of(config) if saved is None else None
        planned = with_beginning(config, parent)
        if config.start_at_stage is not None:
            parent = None
        saved = parent.saved if parent is not None else saved
        sources, order, _ = sources_and_order(planned, open_sources(planned), saved, parent)
        present = replace(config, stages=stages_of_run(planned, sources, order.entries))
        for index, stage in enumerate(order.stages):
            stage.check_world_size(world_size, stage_context(present, index))
        for where, stages in list(all_plans(config).items())[1:]:
            other = replace(config, stages=stages)
            try:
                for index, stage in enumerate(sample_order(other, sources, []).stages):
                    stage.check_world_size(world_size, stage_context(other, index))
            except UserError as error:
                raise UserError(where + one for one in error.problems) from error
        trained = stage_trained_positions(read_model_config(config.model.path), present.stages)
        done = saved["position"] if saved is not None else 0
        problems.extend(short_share_problems(order, sources, trained, config.long_data.min_short_share, done))

    if config.data.take_down is not None:
        collect(read_list, config.data.take_down)
    gates = {stage.name: stage.gate for stage in all_stages(config) if stage.gate is not None}
    if config.suites.every_steps or any(gate.margins.get(SUITES) for gate in gates.values()):
        collect(_check_suites, config, gates)
    documents = config.evaluation.long_context.documents
    if documents and any(gate.margins.get(name) for gate in gates.values() for name in (POSITIONS, LONG_TASKS)):
        collect(find_inputs, documents, "evaluation.long_context.documents")
    collect(check_model_folder, config.model.path)
    if not problems:
        problems.extend(_learned_position_problems(config, gates))
        problems.extend(context_rank_problems(config, world_size, read_model_config(config.model.path)))
        for where, stages in all_plans(config).items():
            try:
                stage_ropes(read_model_config(config.model.path), stages)
            except UserError as error:
                problems.extend(line for one in error.problems if (line := where + one) not in problems)
        collect(check_teacher_files, config, world_size)
        collect(check_order)
    collect(check_shard_size, config.engine.shard_size, world_size)
    if problems:
        raise UserError(problems)
