"""What can be refused before a model is loaded: from the model's config.json, the tokenizer and the shards.

It imports nothing heavy, so a mistake is reported at once. It computes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from cpt_dist.config import CptConfig
from cpt_dist.data.remote import source_folder
from cpt_dist.data.run_order import sample_order
from cpt_dist.data.shard_cache import check_cache_holds
from cpt_dist.data.shards import Source, tokenizer_fingerprint
from cpt_dist.data.take_down import read_list
from cpt_dist.errors import UserError
from cpt_dist.model.folder import check_model_folder, check_seq_len


def open_sources(config: CptConfig) -> list[Source]:
    """The prepared sources that the stages read, in the order of `data.sources`."""
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
    check_cache_holds(config.data, {source.name: source.remote_files for source in sources})
    return sources


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
        order = sample_order(config, open_sources(config))
        for stage in order.stages:
            stage.check_world_size(world_size)

    if config.data.take_down is not None:
        collect(read_list, config.data.take_down)
    collect(check_model_folder, config.model.path)
    if not problems:
        for index, stage in enumerate(config.stages):
            collect(check_seq_len, config.model.path, stage.seq_len, f"stages.{index}.seq_len")
        collect(check_order)
    if problems:
        raise UserError(problems)
