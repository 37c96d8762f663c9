"""From a run's configuration and its ledger to its sample order, for every program that asks for one."""

from __future__ import annotations

from collections.abc import Sequence

from cpt_dist.config import CptConfig
from cpt_dist.data.caps import caps_from_config
from cpt_dist.data.ledger_entry import Entry, read_ledger
from cpt_dist.data.order import SampleOrder
from cpt_dist.data.shards import Source
from cpt_dist.length_upsampling import strata_of_sources, with_factors
from cpt_dist.run_directory import RunDirectory


def sample_order(config: CptConfig, sources: list[Source], ledger: Sequence[Entry] | None = None) -> SampleOrder:
    """The order of the run's samples, under the decisions in `ledger` (default: the run's ledger.jsonl)."""
    if ledger is None:
        ledger = read_ledger(RunDirectory(config.run_dir).ledger)
    caps = caps_from_config(config.data.sources)
    strata = strata_of_sources(config.data.sources, config.stages)
    stages = [with_factors(stage, strata) for stage in config.stages]
    return SampleOrder.from_sources(stages, sources, config.seed, ledger, caps, config.data.shuffle_window_shards)
