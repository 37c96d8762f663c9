"""Saves behind training: it stops only while its tensors are copied into host memory.

A thread of each rank writes the copy, with a process group of its own, so its collectives never meet those of
training. The next save waits for the one before; a failure is raised on every rank at the next step or save. The
bytes and the way in which they become a checkpoint are the store's (`commit.py`), the same as without a thread.
"""

from __future__ import annotations

import copy
import datetime
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from cpt_dist.checkpoint.probe import Probe
from cpt_dist.checkpoint.staging import Staging
from cpt_dist.checkpoint.store import CheckpointStore
from cpt_dist.checkpoint.together import together
from cpt_dist.process_end import SAVING_THREAD

_LONGEST_WAIT = datetime.timedelta(hours=6)
"""For the slowest disk of a job. A rank that is gone is noticed at once, by its closed connection."""


@dataclass(frozen=True)
class SaveReport:
    """A checkpoint that has come into being."""

    step: int
    path: Path
    asynchronous: bool
    stall_seconds: float
    """Time that training stood still for it, waiting for the save before included."""
    write_seconds: float
    """From the first byte to the last rename."""
    notes: dict[str, Any]
    """What the caller wants to hear again when the checkpoint is there."""


class Saver:
    """Writes the checkpoints of one run into `store`, one at a time; made and called on every rank alike."""

    def __init__(self, store: CheckpointStore, asynchronous: bool, local_size: int = 1) -> None:
        self._store, self._asynchronous = store, asynchronous
        self._group = dist.new_group(backend="gloo", timeout=_LONGEST_WAIT)
        self._staging = Staging(local_size)
        self._pending: tuple[Future[float], SaveReport] | None = None
        self._thread: threading.Thread | None = None
        self._done: list[SaveReport] = []
        self._warned = False

    @property
    def failed(self) -> bool:
        """Whether this rank knows that the save in the background has failed; `wait` raises its error."""
        return self._pending is not None and self._pending[0].done() and self._pending[0].exception() is not None

    def prepare(self, tensors: dict[str, torch.Tensor]) -> None:
        """Make the buffers for copies of `tensors` behind training, so that the first save needn't.

        To be called on every rank, when training has taken the memory that it needs, and not after the first save.
        """
        if self._asynchronous and all(together(lambda: self._staging.fits(tensors), self._group)):
            self._staging.make_behind(tensors)

    def save(
        self,
        step: int,
        tensors: dict[str, torch.Tensor],
        trainer: dict[str, Any],
        probe: Probe | None,
        bits_per_byte: dict[str, float] | None = None,
        notes: dict[str, Any] | None = None,
    ) -> None:
        """Save as `CheckpointStore.save` does, or return once the tensors are copied. Raises what the last one met."""
        begin = time.perf_counter()
        self.wait()
        behind = self._asynchronous and all(together(lambda: self._staging.fits(tensors), self._group))
        if self._asynchronous and not behind and not self._warned:
            self._warned = True
            if dist.get_rank() == 0:
                print("warning: too little host memory for a copy of the state; checkpoints stop training", flush=True)
        content = self._staging.copy(tensors) if behind else tensors
        trainer = copy.deepcopy(trainer)  # training counts on in it

        def write() -> float:
            start = time.perf_counter()
            self._store.save(step, content, trainer, probe, bits_per_byte, self._group)
            return time.perf_counter() - start

        future = self._in_background(write) if behind else _at_once(write)
        stall = time.perf_counter() - begin
        report = SaveReport(step, self._store.path(step), behind, stall, 0.0, notes or {})
        self._pending = (future, report)
        if not behind:
            self.wait()

    def reports(self) -> list[SaveReport]:
        """The checkpoints that have come into being since the last call. Never waits."""
        if self._pending is not None and self._pending[0].done() and not self.failed:
            self.wait()
        done, self._done = self._done, []
        return done

    def wait(self) -> None:
        """Return when no save is under way. Raises UserError, on every rank, where the last one has failed."""
        self._staging.wait()
        if self._pending is not None:
            future, report = self._pending
            self._pending = None
            if self._thread is not None:
                # Its result is there before it has ended, and what it then lets go of is torch's: a process whose last
                # lines run meanwhile would be aborted in the interpreter's teardown.
                self._thread.join()
            self._done.append(replace(report, write_seconds=future.result()))

    def give_up(self, seconds: float) -> None:
        """Wait so long for the save under way, and for no outcome: the job is ending with another error."""
        if self._pending is not None:
            self._pending = None
            if self._thread is not None:
                self._thread.join(seconds)

    def _in_background(self, action: Callable[[], float]) -> Future[float]:
        """Like an executor's submit, on a thread that never holds up the end of the process (`process_end.py`)."""
        future: Future[float] = Future()

        def work() -> None:
            try:
                future.set_result(action())
            except BaseException as error:  # noqa: BLE001 - it is raised in the training thread
                future.set_exception(error)

        self._thread = threading.Thread(target=work, name=SAVING_THREAD, daemon=True)
        self._thread.start()
        return future


def _at_once(action: Callable[[], float]) -> Future[float]:
    future: Future[float] = Future()
    future.set_result(action())
    return future
