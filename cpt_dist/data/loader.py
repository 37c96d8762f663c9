"""The loader: from the sample order to the micro-batches of one rank, read ahead by torch's DataLoader.

Step k of a stage is samples [n, n + G); their slots are permuted so that no rank sees one source only, and rank r of W
takes slots r, r + W, …. So the set of samples in a step hangs on neither W nor the micro-batch nor the workers. It
keeps no state: a loader made at sample n is the loader that came there (OLMo-core: `data_loader.py`).
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.context
import signal
import time
from collections.abc import Iterator, Sequence
from multiprocessing import forkserver, resource_tracker
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from cpt_dist.data.batch import Batch
from cpt_dist.data.batches import batch_of_rows, filler_batch
from cpt_dist.data.masking import TakenDown
from cpt_dist.data.order import SampleOrder
from cpt_dist.data.packing import Row, RowSource, rows_in_plans
from cpt_dist.data.permutation import derive_key, drawn_parameters, permuted
from cpt_dist.data.plans import make_plan
from cpt_dist.data.prefetch import remote_files
from cpt_dist.data.row_window import RowWindow
from cpt_dist.errors import UserError

_MICRO_BATCHES_AHEAD = 4
_WINDOW_SAMPLES = 4096
_WINDOW_TOKENS = 1 << 22
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class _MicroBatches(Dataset[Batch | UserError]):
    """Map-style: index -> micro-batch of one rank, counted from the first step; a pure function of the index.

    A damaged shard is handed over as the error itself: one raised in a worker comes out as a text with a traceback.
    """

    def __init__(
        self,
        order: SampleOrder,
        sources: Sequence[RowSource],
        stage: int,
        rank: int,
        world_size: int,
        micro_batch: int,
        first_sample: int,
        positions: str,
    ) -> None:
        self._positions = positions
        self._order, self._sources, self._rank, self._world_size = order, list(sources), rank, world_size
        self._micro_batch, self._first_sample = micro_batch, first_sample
        self._batch_samples = order.stages[stage].batch_samples
        rows_of_a_rank = -(-self._batch_samples // world_size)
        self.per_step = -(-rows_of_a_rank // micro_batch)
        self.num_steps = (order.stage_starts[stage + 1] - first_sample) // self._batch_samples
        plan = order.stages[stage]
        self._plans = [make_plan(source, plan.seq_len, plan.packing) for source in sources]
        self._taken = TakenDown(order.take_downs)
        self._rows_of_rank = len(range(rank, self._batch_samples, world_size))
        # As many steps as make numpy's calls cheap, within bounds for what is computed and kept of them.
        most = min(_WINDOW_SAMPLES // self._batch_samples, _WINDOW_TOKENS // (plan.seq_len * rows_of_a_rank))
        self._window_steps = max(1, most)
        self._window: tuple[int, _Window] | None = None

    def __len__(self) -> int:
        return self.num_steps * self.per_step

    def __getitem__(self, index: int) -> Batch | UserError:
        step, number = divmod(index, self.per_step)
        place, step_of_window = divmod(step, self._window_steps)
        if self._window is None or self._window[0] != place:
            self._window = (place, self._read_ahead(place * self._window_steps))
        window = self._window[1]
        before = step_of_window * self._rows_of_rank
        first = before + number * self._micro_batch
        last = min(first + self._micro_batch, before + self._rows_of_rank)
        if first >= last:
            return filler_batch()
        try:
            if not self._taken:
                return window.rows_ahead.batch(first, last, self._positions)
            chosen = slice(first, last)
            source, sample_ids = window.source[chosen], window.sample_ids[chosen]
            return batch_of_rows(self._sources, source, window.rows[chosen], sample_ids, self._taken, self._positions)
        except UserError as error:
            return error

    def _read_ahead(self, step: int) -> _Window:
        """The rows of this rank in the steps of the window that begins with `step`."""
        num_steps = min(self._window_steps, self.num_steps - step)
        first = self._first_sample + step * self._batch_samples
        samples = self._order.samples(first, num_steps * self._batch_samples)
        slots = window_slots(self._order.seed, first, self._batch_samples, num_steps, self._rank, self._world_size)
        source = samples.source[slots]
        rows = rows_in_plans(self._plans, source, samples.row[slots])
        return _Window(source, rows, first + slots, RowWindow(self._sources, source, rows, first + slots))


class _Window(NamedTuple):
    """Source, row and number of the samples of some steps, and the same as something to make batches from."""

    source: np.ndarray
    rows: list[Row]
    sample_ids: np.ndarray
    rows_ahead: RowWindow


def rank_slots(seed: int, first_sample: int, batch_samples: int, rank: int, world_size: int) -> np.ndarray:
    """Offsets from `first_sample` of the samples that a rank takes, in its order: int64 [rows of the rank]."""
    return window_slots(seed, first_sample, batch_samples, 1, rank, world_size)


def window_slots(
    seed: int, first_sample: int, batch_samples: int, num_steps: int, rank: int, world_size: int
) -> np.ndarray:
    """`rank_slots` of steps in a row, each counted from the first sample of all: int64 [num_steps * rows]."""
    starts = np.arange(num_steps) * batch_samples
    keys = [derive_key("slots", seed, start) for start in (first_sample + starts).tolist()]
    parameters = drawn_parameters([batch_samples] * num_steps, keys)
    own = np.arange(rank, batch_samples, world_size)
    slots = permuted(np.tile(own, num_steps), np.stack(parameters, axis=1), np.repeat(np.arange(num_steps), len(own)))
    return slots + np.repeat(starts, len(own))


class StepLoader:
    """Iterates over the optimizer steps left of a stage; each is the list of micro-batches of this rank.

    `sources` are in the order of `order.source_names`. `first_sample` (default: the stage's first) is the global index
    at which the step to begin with starts. All ranks give equally many micro-batches; a rank or micro-batch without
    rows gives `filler_batch()`. The batches are the same for any `num_workers`. `positions` is one of
    `config.POSITIONS`. Raises UserError where there are more ranks than rows in a batch and, while iterating, for a
    damaged shard; ValueError for a `first_sample` that is no step boundary of the stage.
    """

    def __init__(
        self,
        order: SampleOrder,
        sources: Sequence[RowSource],
        *,
        stage: int,
        rank: int = 0,
        world_size: int = 1,
        micro_batch: int = 1,
        num_workers: int = 0,
        first_sample: int | None = None,
        pin_memory: bool = False,
        positions: str = "restart",
    ) -> None:
        plan, start = order.stages[stage], order.stage_starts[stage]
        plan.check_world_size(world_size)
        first_sample = start if first_sample is None else first_sample
        if not start <= first_sample <= order.stage_starts[stage + 1] or (first_sample - start) % plan.batch_samples:
            raise ValueError(f"sample {first_sample} is no step boundary of stage '{plan.name}'")
        self._batches = _MicroBatches(order, sources, stage, rank, world_size, micro_batch, first_sample, positions)
        self._sources, self._num_workers, self._pin_memory = list(sources), num_workers, pin_memory
        self.wait_seconds = 0.0
        """Time that the iterating program spent waiting for micro-batches, since the loader was made."""

    @property
    def micro_batches_per_step(self) -> int:
        """Length of each list: equal on all ranks."""
        return self._batches.per_step

    def __len__(self) -> int:
        """Steps from `first_sample` to the end of the stage."""
        return self._batches.num_steps

    def __iter__(self) -> Iterator[list[Batch]]:
        batches = self._read_here() if not self._num_workers else iter(self._workers())
        workers = getattr(batches, "_workers", [])
        try:
            for _ in range(len(self)):
                yield self._next_step(batches)  # kept nowhere here, so its memory is free for the step after it
        finally:
            if workers:
                # Asks the workers to end, gives each 5 seconds, and lets torch forget them. `del` would not do where an
                # exception's traceback holds the iterator: torch's handler of SIGCHLD takes the kill for a crash then,
                # and raises in the main thread wherever that is, such as amid the release of a lock.
                cast(Any, batches)._shutdown_workers()
            for worker in workers:  # one in a fetch that goes on would hold up the end of the job
                worker.kill()

    def _next_step(self, batches: Iterator[Batch | UserError]) -> list[Batch]:
        begin = time.perf_counter()
        step = [_unless_error(next(batches)) for _ in range(self.micro_batches_per_step)]
        self.wait_seconds += time.perf_counter() - begin
        return step

    def _read_here(self) -> Iterator[Batch | UserError]:
        """What a DataLoader without workers gives, for a tenth of its time."""
        pin = self._pin_memory and torch.accelerator.is_available()
        for index in range(len(self._batches)):
            batch = self._batches[index]
            yield batch.pin_memory() if pin and isinstance(batch, Batch) else batch
            del batch

    def _workers(self) -> DataLoader[Batch | UserError]:
        return DataLoader(
            self._batches,
            batch_size=None,
            num_workers=self._num_workers,
            prefetch_factor=_MICRO_BATCHES_AHEAD,
            multiprocessing_context=_context(self._sources),
            pin_memory=self._pin_memory,
            worker_init_fn=_one_thread,
            # Else it draws a seed from torch's global generator, and a resumed run has other random numbers.
            generator=torch.Generator(),
        )


def _context(sources: Sequence[RowSource]) -> multiprocessing.context.BaseContext | None:
    """How workers are started: None (torch's default, fork on Linux), or for shards behind a URL a fork server.

    A rank that has read from a URL runs threads of fsspec and of the prefetcher. A fork amid their work copies locks
    that nobody in the child ever releases, and the child waits for ever. The server is a new process without any of
    these; it imports the loader once, and every worker is forked from it. The signals that ask a job to stop reach all
    of its processes and are blocked in these: the rank needs its workers up to the end of its step.
    """
    if not any(remote_files(source) for source in sources):
        return None
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        resource_tracker.ensure_running()  # the server needs it, and starting it unblocks SIGTERM
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
        forkserver.ensure_running()  # which inherits the mask, as do its workers
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def _unless_error(item: Batch | UserError) -> Batch:
    if isinstance(item, UserError):
        raise item
    return item


def _one_thread(_worker: int) -> None:
    """Workers copy memory; more threads in each would take the cores from the model."""
    torch.set_num_threads(1)
