"""From a run's configuration to its checkpoints, for every program that asks for them."""

from __future__ import annotations

from cpt_dist.checkpoint.retention import Retention
from cpt_dist.checkpoint.store import CheckpointStore
from cpt_dist.config import CptConfig
from cpt_dist.run_directory import RunDirectory


def checkpoint_store(config: CptConfig) -> CheckpointStore:
    """The store of the run, under the rules of `checkpoint.keep_…`."""
    keep = config.checkpoint
    retention = Retention(keep.keep_last, keep.keep_every, keep.keep_best, keep.keep_best_of)
    return CheckpointStore(RunDirectory(config.run_dir).checkpoints, retention=retention)
