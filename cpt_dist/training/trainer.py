"""The training loop: stages, steps, callbacks.

`train` is the whole job from a configuration to the last checkpoint, `train_step` one optimizer step. What is
recorded, saved or evaluated is in `callbacks.py`; how a run is put together, or taken up again, in `setup.py`.
"""

from __future__ import annotations

import sys
import time

import torch

from cpt_dist.config import CptConfig, StageConfig
from cpt_dist.engine import distributed
from cpt_dist.errors import UserError
from cpt_dist.training.run import Run, StepBatches, StepResult
from cpt_dist.training.setup import set_up

EXIT_REQUEUE = 75
"""Exit code of a job that was asked to stop and has saved where it is (EX_TEMPFAIL of sysexits.h)."""
SECONDS_FOR_LAST_SAVE = 60.0
"""A job that ends with an error gives so long to the checkpoint that is being written."""


def train(config: CptConfig) -> None:
    """Train to the end of the last stage, from the newest checkpoint of the run directory if there is one.

    Leaves the process with `EXIT_REQUEUE` when it was asked to stop before the end.
    """
    world = distributed.start(config.engine)
    try:
        run = set_up(config, world)
        fit(run)
    finally:
        distributed.stop()
    if not run.finished:
        sys.exit(EXIT_REQUEUE)


def fit(run: Run) -> None:
    """The loop."""
    run.each("on_start")
    try:
        _steps(run)
    except UserError:
        run.saver.give_up(SECONDS_FOR_LAST_SAVE)
        raise
    run.saver.wait()
    run.each("on_end")


def _steps(run: Run) -> None:
    for index, stage in run.remaining_stages():
        for batches in run.steps_of(index):
            result = train_step(run, index, stage, batches)
            run.totals.add(result)
            run.each("after_step", result)
            if result.stop_requested:
                return


def train_step(run: Run, index: int, stage: StageConfig, batches: StepBatches) -> StepResult:
    """One optimizer step of stage number `index`, on this rank's `batches`.

    The loss is divided by the target tokens of the step over all ranks. Raises FloatingPointError, before the weights
    change, where the loss is not finite.
    """
    begin = time.perf_counter()
    engine, world = run.engine, run.world
    num_sources = len(run.sources)
    batch_samples = run.order.stages[index].batch_samples
    sums = torch.zeros(6, num_sources, dtype=torch.float64)
    for number, batch in enumerate(batches.micro_batches, start=1):
        last = number == len(batches.micro_batches)
        nll = engine.forward_backward(batch, batches.num_target_tokens, last).cpu()
        for row, counts in enumerate((torch.ones_like(batch.row_sources), batch.skipped_pieces, batch.skipped_tokens)):
            sums[3 + row] += run.sums_by_source(counts, batch.row_sources)
        if batch.is_filler:
            continue  # it only keeps the ranks in step
        is_target = batch.labels >= 0
        for row, values in enumerate((nll, is_target, torch.ones_like(is_target))):
            sums[row] += run.sums_by_source(values, batch.source_ids)
    waits = torch.zeros(world.size, dtype=torch.float64)
    waits[world.rank] = batches.wait_seconds
    votes = torch.tensor([float(run.stop_requested), float(run.saver.failed)], dtype=torch.float64)
    shared = world.sum(torch.cat([sums.flatten(), waits, votes])).cpu()
    sums = shared[: 6 * num_sources].view(6, num_sources)
    if not torch.isfinite(sums[0]).all():
        raise FloatingPointError(
            f"step {run.step + 1}: the loss is not finite; samples {run.position} to "
            f"{run.position + batch_samples - 1}; checkpoints before it: {run.store.steps()}"
        )
    run.position += batch_samples
    rate = run.learning_rate(index, run.progress(index))
    norm = engine.step(rate)
    return StepResult(
        step=run.step,
        stage=stage.name,
        learning_rate=rate,
        grad_norm=norm,
        nll_by_source=sums[0].tolist(),
        target_tokens_by_source=[int(count) for count in sums[1]],
        input_tokens_by_source=[int(count) for count in sums[2]],
        samples_by_source=[int(count) for count in sums[3]],
        skipped_pieces_by_source=[int(count) for count in sums[4]],
        skipped_tokens_by_source=[int(count) for count in sums[5]],
        seconds=time.perf_counter() - begin + batches.wait_seconds,
        data_wait_seconds=float(shared[6 * num_sources : -2].max()),
        stop_requested=bool(shared[-2] > 0),
        save_failed=bool(shared[-1] > 0),
    )
