"""How a run begins that doesn't begin with the base model at sample 0: forked from another run, or at a later stage.

A fork takes a checkpoint of another run with its place in the data. What of the other run's decisions lies before that
place comes along; the rest of its future doesn't. Which checkpoint it was is decided by the first start and kept in
fork.json, so that a run which is killed before its own first checkpoint forks again from the same one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpt_dist.checkpoint.catalogue import Catalogue
from cpt_dist.config import CptConfig
from cpt_dist.data.gate_decision import GateDecision
from cpt_dist.data.ledger_entry import Entry, LedgerEntry, read_ledger
from cpt_dist.data.run_order import cut_short
from cpt_dist.data.skip import START, Skip
from cpt_dist.errors import UserError
from cpt_dist.files import write_json
from cpt_dist.run_directory import RunDirectory
from cpt_dist.training.lineage import checkpoint_identity, last_lineage

if TYPE_CHECKING:
    from cpt_dist.checkpoint.store import CheckpointStore


@dataclass(frozen=True)
class Parent:
    """The checkpoint that a run is forked from."""

    directory: RunDirectory
    checkpoints: Catalogue
    step: int
    saved: dict[str, Any]
    """Its trainer.json."""

    @property
    def store(self) -> CheckpointStore:
        """Its checkpoints, to read tensors from."""
        from cpt_dist.checkpoint.store import CheckpointStore  # torch: too slow for a look before a run

        return CheckpointStore(self.directory.checkpoints)

    @property
    def position(self) -> int:
        """Samples that it has read."""
        return int(self.saved["position"])

    def ledger(self) -> list[Entry]:
        """The decisions of the other run that were made, or act, before the checkpoint; and all its take-downs."""
        kept: list[Entry] = []
        weights = 0
        for entry in read_ledger(self.directory.ledger):
            if isinstance(entry, LedgerEntry):
                weights += 1
            if not self._is_past(entry, weights):
                continue
            kept.append(entry)
        return kept

    def _is_past(self, entry: Entry, number: int) -> bool:
        """Whether a decision belongs to what the checkpoint has; `number` counts those about weights from 1."""
        if isinstance(entry, LedgerEntry):
            return number <= int(self.saved["order"].get("ledger_entries", 0)) or entry.n_start < self.position
        if isinstance(entry, Skip):
            return entry.n_start < self.position
        return not isinstance(entry, GateDecision) or entry.n_start <= self.position

    def record(self) -> dict[str, Any]:
        """What fork.json keeps."""
        return {
            "run_dir": str(self.directory.path),
            "step": self.step,
            "position": self.position,
            "checkpoint": checkpoint_identity(self.checkpoints, self.step),
            "parent": last_lineage(self.directory.path),
        }


def parent_of(config: CptConfig) -> Parent | None:
    """The checkpoint that `config.fork` means; None without a fork. Raises UserError where it isn't there."""
    if config.fork.run_dir is None:
        return None
    directory = RunDirectory(config.fork.run_dir)
    if directory.path.resolve() == Path(config.run_dir).resolve():
        raise UserError(f"fork.run_dir: '{directory.path}' is run_dir itself; give the fork a run_dir of its own")
    if not directory.checkpoints.is_dir():
        raise UserError(f"fork.run_dir: '{directory.path}' has no checkpoints; give the folder of a run")
    store = Catalogue(directory.checkpoints)
    kept = read_fork(config)
    step = int(kept["step"]) if kept else _step_of(config.fork.step, store, directory)
    if step not in store.steps():
        raise UserError(f"fork.run_dir: the checkpoint of step {step} is no longer in '{directory.checkpoints}'")
    return Parent(directory, store, step, store.trainer(step))


def _step_of(text: str, store: Catalogue, directory: RunDirectory) -> int:
    order = directory.read_order() or {}
    steps = 0
    ends = {}
    for stage in order.get("stages", []):
        steps += stage["num_samples"] // stage["batch_samples"]
        ends[stage["name"]] = steps
    if text not in store.names() and text in ends:
        if ends[text] not in store.steps():
            raise UserError(
                f"fork.step: stage '{text}' ends at step {ends[text]}, of which there is no checkpoint (there are "
                f"{store.steps()}); 'keep: true' in a stage keeps that of its end"
            )
        return ends[text]
    try:
        return store.step_of(text)
    except UserError as error:
        stages = f"; stages: {', '.join(ends)}" if ends else ""
        raise UserError(f"fork.step: {problem}{stages}" for problem in error.problems) from error


def read_fork(config: CptConfig) -> dict[str, Any] | None:
    """What the run's fork.json says; None where there is none."""
    path = RunDirectory(config.run_dir).fork
    try:
        found: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except ValueError as error:
        raise UserError(f"'{path}' is no JSON ({error}); restore it from a copy") from error
    return found


def keep_fork(config: CptConfig, parent: Parent) -> dict[str, Any]:
    """Write fork.json where it is missing, as one process; returns its content."""
    directory = RunDirectory(config.run_dir)
    found = read_fork(config)
    if found is None:
        found = parent.record()
        directory.path.mkdir(parents=True, exist_ok=True)
        cut = cut_of(config, parent)
        write_json(directory.fork, {**found, **({"cut": cut} if cut else {})})
    return found


def cut_of(config: CptConfig, parent: Parent) -> dict[str, Any] | None:
    """Name, tokens and share of the learning-rate curve of the stage that ends at the fork, where it is to."""
    if not config.fork.cut_stage:
        return None
    order = parent.directory.read_order() or {}
    lengths = parent.saved["order"].get("stage_samples")
    start = 0
    for stage, num_samples in zip(order.get("stages", []), lengths or [], strict=False):
        if start < parent.position < start + num_samples:
            done = parent.position - start
            return {"stage": stage["name"], "tokens": done * stage["seq_len"], "covers": done / num_samples}
        start += num_samples
    return None


def with_beginning(config: CptConfig, parent: Parent | None) -> CptConfig:
    """`config` with the stage that its fork cuts as long as it is."""
    cut = None if parent is None or config.start_at_stage is not None else cut_of(config, parent)
    return config if cut is None else replace(config, stages=cut_short(config, cut))


def own_ledger(config: CptConfig, parent: Parent | None) -> list[Entry]:
    """The decisions of the run: its own, or before its first start those that come along from its parent."""
    path = RunDirectory(config.run_dir).ledger
    if path.is_file() or parent is None or config.start_at_stage is not None:
        return read_ledger(path)
    return parent.ledger()


def start_entry(stage: str, n: int, ledger: Sequence[Entry], where_from: str) -> Skip | None:
    """The entry that leaves out the samples before a run's first stage, n of them; None where it is there, or none."""
    if n == 0 or any(isinstance(entry, Skip) and entry.what == START for entry in ledger):
        return None
    return Skip(0, n, START, f"the run begins with stage '{stage}', from {where_from}", {"stage": stage})
