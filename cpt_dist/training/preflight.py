"""What can be refused before a model is loaded: from the model's config.json, the tokenizer and the shards.

It imports nothing heavy, so a mistake is reported at once. It computes nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from cpt_dist.config import CptConfig, check_shard_size
from cpt_dist.context_config import context_rank_problems, stage_context
from cpt_dist.data.long_documents import short_share_problems
from cpt_dist.data.remote import source_folder
from cpt_dist.data.shard_cache import check_cache_holds
from cpt_dist.data.shards import Source, tokenizer_fingerprint
from cpt_dist.data.take_down import read_list
from cpt_dist.data.views import views_of
from cpt_dist.errors import UserError
from cpt_dist.model.folder import check_model_folder, read_model_config
from cpt_dist.model.rope import stage_ropes, stage_trained_positions
from cpt_dist.run_directory import RunDirectory
from cpt_dist.training.growth import sources_and_order


def open_sources(config: CptConfig) -> list[Source]:
    """What the stages read: the prepared sources in the order of `data.sources`, each as its strata and generations."""
    used = {name for stage in config.stages for name in stage.mixture}
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
    views = views_of(sources, config.data.sources, config.stages)
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
        views, order, _ = sources_and_order(config, open_sources(config), saved)
        for index, stage in enumerate(order.stages):
            stage.check_world_size(world_size, stage_context(config, index))
        trained = stage_trained_positions(read_model_config(config.model.path), config.stages)
        done = saved["position"] if saved is not None else 0
        problems.extend(short_share_problems(order, views, trained, config.long_data.min_short_share, done))

    if config.data.take_down is not None:
        collect(read_list, config.data.take_down)
    collect(check_model_folder, config.model.path)
    if not problems:
        problems.extend(context_rank_problems(config, world_size, read_model_config(config.model.path)))
        collect(stage_ropes, read_model_config(config.model.path), config.stages)
        collect(check_order)
    collect(check_shard_size, config.engine.shard_size, world_size)
    if problems:
        raise UserError(problems)
