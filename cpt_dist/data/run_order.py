"""From a run's configuration and its ledger to its sample order, for every program that asks for one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cpt_dist.config import CptConfig, StageConfig
from cpt_dist.data.caps import caps_from_config
from cpt_dist.data.gate_decision import forks
from cpt_dist.data.ledger_entry import Entry, read_ledger
from cpt_dist.data.order import SampleOrder
from cpt_dist.data.shards import Source
from cpt_dist.data.stage_epochs import with_tokens
from cpt_dist.length_upsampling import strata_of_sources, with_factors
from cpt_dist.plans_of_run import all_stages, forked
from cpt_dist.run_directory import RunDirectory


def stages_of_run(
    config: CptConfig, sources: Sequence[Source], ledger: Sequence[Entry] | None = None
) -> list[StageConfig]:
    """The stages as they are trained: after the forks in `ledger` (default: the run's), and each with its tokens."""
    directory = RunDirectory(config.run_dir)
    stages = list(config.stages)
    kept = directory.stages
    if directory.fork.is_file():
        cut = json.loads(directory.fork.read_text(encoding="utf-8")).get("cut")
        stages = cut_short(config, cut) if cut else stages
    if not kept.is_file() and config.fork.run_dir is not None:
        kept = RunDirectory(config.fork.run_dir).stages
    for fork in forks(read_ledger(directory.ledger) if ledger is None else ledger):
        stages = forked(stages, fork.stage, fork.fork_to, config.alternatives)
    strata = strata_of_sources(config.data.sources, all_stages(config))
    return with_tokens(stages, sources, kept, lambda stage: with_factors(stage, strata))


def cut_short(config: CptConfig, cut: dict[str, Any]) -> list[StageConfig]:
    """The stages with the one that a fork cut as long as `cut` says (`fork.json`), and its learning rates as before."""
    return [
        replace(
            stage,
            tokens=str(cut["tokens"]),
            epochs=None,
            schedule=replace(stage.schedule or config.schedule, covers=cut["covers"]),
        )
        if stage.name == cut["stage"]
        else stage
        for stage in config.stages
    ]


def sample_order(config: CptConfig, sources: list[Source], ledger: Sequence[Entry] | None = None) -> SampleOrder:
    """The order of the run's samples, under the decisions in `ledger` (default: the run's ledger.jsonl)."""
    if ledger is None:
        ledger = read_ledger(RunDirectory(config.run_dir).ledger)
    caps = caps_from_config(config.data.sources)
    strata = strata_of_sources(config.data.sources, all_stages(config))
    stages = [with_factors(stage, strata) for stage in stages_of_run(config, sources, ledger)]
    return SampleOrder.from_sources(stages, sources, config.seed, ledger, caps, config.data.shuffle_window_shards)
