"""What follows from a step with bad numbers: skip it, go back, stop (the ladder of docs/training.md).

Each decision is an entry of ledger.jsonl before it acts, made from numbers that all ranks share, so a run with the
same ledger has the same weights (PaLM, arXiv 2204.02311, section 5.1, restarts 100 steps before a spike and skips 200
to 500 batches). Nothing is judged here.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import time
from dataclasses import dataclass
from typing import Any

import torch

from cpt_dist.checkpoint.commit import retire
from cpt_dist.data.batch import Batch
from cpt_dist.data.ledger_entry import write_ledger
from cpt_dist.data.lookup import readings_of_steps
from cpt_dist.data.order import SampleOrder
from cpt_dist.data.run_order import sample_order
from cpt_dist.data.skip import WINDOW, Skip
from cpt_dist.errors import UserError
from cpt_dist.files import write_json
from cpt_dist.training.first_rank import on_first
from cpt_dist.training.gates import forget_after
from cpt_dist.training.run import Run

REPORT = "bad_numbers.json"


@dataclass(frozen=True)
class BadStep:
    """A step that changed no weight because of its numbers."""

    step: int
    n_start: int
    num_samples: int
    loss: float
    grad_norm: float
    reason: str

    def skip(self, suspects: list[str]) -> Skip:
        """The step as an entry of the ledger; `suspects` are ids of documents whose own loss is not finite."""
        evidence: dict[str, Any] = {"step": self.step, "loss": _json(self.loss), "grad_norm": _json(self.grad_norm)}
        if suspects:
            evidence["documents"] = suspects
        return Skip(self.n_start, self.n_start + self.num_samples, reason=self.reason, evidence=evidence)


def documents_without_number(batch: Batch, nll: torch.Tensor) -> list[str]:
    """Hex ids of the documents of a micro-batch in which a token's nll [tokens] is not finite."""
    if bool(torch.isfinite(nll).all()):
        return []
    ends = batch.cu_seqlens.tolist()
    bad = [i for i, (a, b) in enumerate(itertools.pairwise(ends)) if not torch.isfinite(nll[a:b]).all()]
    return [bytes(batch.doc_ids[i].tolist()).hex() for i in bad]


def record_bad_step(run: Run, bad: BadStep, suspects: list[str]) -> None:
    """Enter a bad step into the ledger; after `guards.max_skips` in a row also the window to skip after going back.

    To be called on every rank, before the position moves on. Sets `run.rewind_to` where the run has to go back.
    Raises UserError, on every rank, where that has been done often enough; then a report lies in the run directory.
    """
    named = sorted({one for part in run.world.gather(suspects) for one in part})
    skip = bad.skip(named)
    entries = [*run.order.entries, skip]
    order = sample_order(run.config, run.sources, entries)
    row = run.guards.bad_steps_before(order, skip.n_stop)
    if len(row) >= run.config.guards.max_skips:
        start = _steps_back(order, row[0].n_start, run.config.guards.rewind_steps)
        rewinds = [one for one in run.order.skips if one.what == WINDOW and one.n_stop > start]
        target = _checkpoint_before(run, start, row[0].n_start)
        if target is None or len(rewinds) >= run.config.guards.max_rewinds:
            _stop(run, row, rewinds, target)
        assert target is not None
        step, position = target
        reason = f"{len(row)} bad steps in a row; back to the checkpoint of step {step}"
        evidence = {"step": bad.step, "checkpoint": step, "position": position}
        window = Skip(max(start, position), skip.n_stop, WINDOW, reason, evidence)
        # Checkpoints of what is about to be skipped go before the entry comes: with it they could not be resumed.
        _abandon_after(run, step)
        on_first(run.world, lambda: forget_after(run, position))
        entries.append(window)
        run.rewind_to = step
    _enter(run, bad, entries)


def _enter(run: Run, bad: BadStep, entries: list[Any]) -> None:
    """Make `entries` the run's ledger, on disk first."""

    def write() -> None:
        write_ledger(run.directory.ledger, entries)
        record = {"kind": "skip", "step": bad.step, "n_start": bad.n_start, "reason": bad.reason, "time": time.time()}
        record |= {"loss": _json(bad.loss), "grad_norm": _json(bad.grad_norm), "back_to": run.rewind_to}
        run.directory.append_metrics(record)

    on_first(run.world, write)
    run.order = sample_order(run.config, run.sources, entries)


def go_back(run: Run) -> None:
    """Take up the run at the checkpoint of `run.rewind_to`, on every rank."""
    from cpt_dist.training.setup import resume

    step = run.rewind_to
    assert step is not None
    run.rewind_to = None
    resume(run, step)
    run.enter_stage(run.order.stage_of(run.position))
    if run.world.is_first:
        print(f"went back to the checkpoint of step {step}; ledger.jsonl says what is skipped", flush=True)


def _steps_back(order: SampleOrder, n: int, num_steps: int) -> int:
    """First sample of the step that lies `num_steps` steps that aren't skipped before sample n, or 0."""
    while n > 0 and num_steps > 0:
        n -= order.stages[order.stage_of(n - 1)].batch_samples
        num_steps -= n not in order.skipped
    return n


def _checkpoint_before(run: Run, start: int, first_bad: int) -> tuple[int, int] | None:
    """(step, sample) of the newest whole checkpoint at or before `start`; else of the oldest before the bad steps."""
    run.saver.wait()
    known = run.world.gather(_positions(run) if run.world.is_first else None)[0]
    before = [one for one in reversed(known) if one[1] <= start]
    after = [one for one in known if start < one[1] <= first_bad]
    for step, position in before + after:
        try:
            run.store.verify(step, run.config.checkpoint.verify)
        except UserError:
            continue
        return step, position
    return None


def _positions(run: Run) -> list[tuple[int, int]]:
    found = []
    for step in run.store.steps():
        try:
            found.append((step, int(run.store.trainer(step)["position"])))
        except (OSError, ValueError, KeyError):
            continue  # damaged: it is none to go back to
    return found


def _abandon_after(run: Run, step: int) -> None:
    """Take away the checkpoints after `step`; those that a user named stay under a name that no program resumes."""

    def abandon() -> None:
        named = set(run.store.names().values())
        for later in [one for one in run.store.steps() if one > step]:
            if later in named:
                path = run.store.path(later)
                os.replace(path, path.with_name(f"abandoned-{path.name}-{int(time.time())}"))
            else:
                retire(run.store.folder, later)

    on_first(run.world, abandon)
    run.store.tidy()


def _stop(run: Run, row: list[Skip], rewinds: list[Skip], target: tuple[int, int] | None) -> None:
    """Write the report and raise UserError with it in one line."""
    steps = [one.evidence["step"] for one in row]
    path = run.directory.path / REPORT

    def report() -> None:
        read = sample_order(run.config, run.sources, [one for one in run.order.entries if not isinstance(one, Skip)])
        documents: dict[str, dict[str, Any]] = {}
        for reading in readings_of_steps(read, run.sources, steps[0], steps[-1]):
            place = reading.place
            source = run.sources[place.source]
            name = source.doc_ids(place.shard)[place.document].tobytes().hex()
            found = documents.setdefault(name, {"source": source.name, "steps": []})
            if reading.step not in found["steps"]:
                found["steps"].append(reading.step)
        events = [{"samples": [one.n_start, one.n_stop - 1], "reason": one.reason, **one.evidence} for one in row]
        windows = [{"samples": [one.n_start, one.n_stop - 1], "reason": one.reason} for one in rewinds]
        content = {"bad_steps": events, "rewinds": windows, "documents": documents, "time": time.time()}
        try:
            write_json(path, content)
        except OSError as error:
            print(f"warning: {path}: {error.strerror}; the report is: {json.dumps(content)}", flush=True)

    # A launcher kills the ranks that are left when one ends, so none ends before the report is there.
    on_first(run.world, report)
    suspects = sorted({name for one in row for name in one.evidence.get("documents", [])})
    named = f", first of all {', '.join(suspects[:3])}" if suspects else ""
    tried = f"going back {len(rewinds)} time(s) did not help" if target else "no checkpoint lies before them"
    raise UserError(
        f"steps {steps[0]} to {steps[-1]} have bad numbers ({row[-1].reason}) and {tried}; their documents are in "
        f"{path}{named}; lower schedule.peak_lr, take the documents out, or raise guards.max_rewinds, and start again"
    )


def _json(value: float) -> float | str:
    """JSON has no nan and no infinity."""
    return value if math.isfinite(value) else str(value)
