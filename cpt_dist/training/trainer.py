"""The training loop: stages, steps, callbacks.

`train` is the whole job from a configuration to the last checkpoint, `train_step` one optimizer step. What is
recorded, saved or evaluated is in `callbacks.py`; how a run is put together, or taken up again, in `setup.py`.
"""

from __future__ import annotations

import os
import sys
import time

import torch

from cpt_dist.cluster.health import OWN_TIME, straggler
from cpt_dist.cluster.start_folder import record_outcome
from cpt_dist.cluster.stop import REASONS, SIGNAL, agreed_reason
from cpt_dist.config import CptConfig, StageConfig
from cpt_dist.engine import distributed
from cpt_dist.errors import UserError
from cpt_dist.training.bad_steps import BadStep, documents_without_number, go_back, record_bad_step
from cpt_dist.training.first_rank import on_first
from cpt_dist.training.health import Health
from cpt_dist.training.node_check import check_nodes
from cpt_dist.training.run import Run, StepBatches, StepResult
from cpt_dist.training.setup import set_up

EXIT_REQUEUE = 75
"""Exit code of a job that was asked to stop and has saved where it is (EX_TEMPFAIL of sysexits.h)."""
RETENTION_BUDGET = "retention budget"
"""What lineage.jsonl says of a job that forgot too much."""
SECONDS_FOR_LAST_SAVE = 60.0
"""A job that ends with an error gives so long to the checkpoint that is being written."""


def train(config: CptConfig) -> None:
    """Train to the end of the last stage, from the newest checkpoint of the run directory if there is one.

    Leaves the process with `EXIT_REQUEUE` when it was asked to stop before the end.
    """
    health = Health(config)
    try:
        world = distributed.start(config.engine)
        health.meet(world)
        check_nodes(config, world)
        health.activity.enter("set up")
        goes_on = True
        while goes_on:
            run = set_up(config, world)
            run.activity, run.nodes = health.activity, health.nodes
            goes_on = fit(run)
    except (RuntimeError, UserError) as error:
        health.explain(error)
        raise
    finally:
        health.end()
        distributed.stop()
    if world.is_first:
        run.edges.finish(run)
    if not run.finished:
        if world.is_first:
            record_outcome(os.environ, EXIT_REQUEUE, run.stopped_for or SIGNAL)
        sys.exit(EXIT_REQUEUE)


def fit(run: Run) -> bool:
    """The loop; whether the run has to be set up again because a gate has changed its plan."""
    run.each("on_start")
    try:
        _refuse(run)
        forked = _steps(run)
    except UserError:
        run.saver.give_up(SECONDS_FOR_LAST_SAVE)
        raise
    run.saver.wait()
    if not forked:
        run.edges.end(run)
    run.each("on_end")
    on_first(run.world, run.directory.raise_failure)
    return forked


def _steps(run: Run) -> bool:
    if not run.edges.start(run):
        return True
    for index, stage in run.remaining_stages():
        run.edges.enter(run, index)
        for batches in run.steps_of(index):
            result = train_step(run, index, stage, batches)
            if result.record_failed:
                on_first(run.world, run.directory.raise_failure)
            run.totals.add(result)
            run.each("after_step", result)
            if run.rewind_to is not None:
                go_back(run)
            _refuse(run)
            run.stopped_for = result.stop_reason
            if run.stopped_for:
                return False
        if run.position == run.order.stage_starts[index + 1] and not run.edges.leave(run, index):
            return True
    return False


def _refuse(run: Run) -> None:
    """End the job where the present weights, which are saved, are not to be trained further."""
    if run.refusal is not None:
        run.saver.wait()
        run.stopped_for = RETENTION_BUDGET
        run.edges.end(run)
        run.each("on_end")
        raise UserError(run.refusal)


def train_step(run: Run, index: int, stage: StageConfig, batches: StepBatches) -> StepResult:
    """One optimizer step of stage number `index`, on this rank's `batches`.

    The loss is divided by the target tokens of the step over all ranks. A step that the ledger skips, or whose numbers
    are bad (`guards.py`), changes no weight; what follows from bad ones is in `bad_steps.py`.
    """
    if batches.skipped:
        return _skipped_step(run, index, stage)
    begin = time.perf_counter()
    run.activity.enter("forward and backward", run.step + 1)
    engine, world = run.engine, run.world
    num_sources = len(run.sources)
    batch_samples = run.order.stages[index].batch_samples
    sums = torch.zeros(7, num_sources, dtype=torch.float64)
    distillation = run.distillation.of_step(batches.num_distilled_tokens) if run.distillation else None
    suspects: list[str] = []
    for number, batch in enumerate(batches.micro_batches, start=1):
        last = number == len(batches.micro_batches)
        nll = engine.forward_backward(batch, batches.num_target_tokens, last, distillation).cpu()
        joined = batch.joined_tokens(stage.seq_len)
        by_row = (torch.ones_like(batch.row_sources), batch.skipped_pieces, batch.skipped_tokens, joined)
        for row, counts in enumerate(by_row):
            sums[3 + row] += run.sums_by_source(counts, batch.row_sources)
        if batch.is_filler:
            continue  # it only keeps the ranks in step
        suspects += documents_without_number(batch, nll)
        is_target = batch.labels >= 0
        for row, values in enumerate((nll, is_target, torch.ones_like(is_target))):
            sums[row] += run.sums_by_source(values, batch.source_ids)
    if not engine.context.now.counts:
        sums[1:] = 0  # of the ranks that share rows, one counts them; the nll of each token is on one rank anyway
    run.activity.enter("agreement")
    own_times = torch.zeros(world.size, len(OWN_TIME), dtype=torch.float64)
    own_times[world.rank] = torch.tensor(run.own_time.measured(run.activity, batches.wait_seconds, run.step))
    votes = _votes(run)
    kl = torch.tensor([distillation.kl if distillation else 0.0], dtype=torch.float64)
    parts = (sums, own_times, votes, kl)
    shared = world.sum(torch.cat([part.flatten() for part in parts])).cpu().split([part.numel() for part in parts])
    sums, own_times, votes, kl = (one.view(part.shape) for one, part in zip(shared, parts, strict=True))
    run.activity.enter("optimizer")
    loss = float(sums[0].sum() / max(1.0, float(sums[1].sum())))
    rate = run.learning_rate(index, run.progress(index, run.position + batch_samples))
    run.guards.enter(index)
    norm = engine.step(rate, lambda norm: not run.guards.objection(loss, norm))
    skipped = run.guards.objection(loss, norm)
    if skipped:
        record_bad_step(run, BadStep(run.step + 1, run.position, batch_samples, loss, norm, skipped), suspects)
    else:
        run.guards.observe(loss, norm)
        engine.updates.count()
    run.position += batch_samples
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
        joined_tokens_by_source=[int(count) for count in sums[6]],
        seconds=time.perf_counter() - begin + batches.wait_seconds,
        data_wait_seconds=float(own_times[:, 0].max()),
        straggler=straggler(own_times.tolist()),
        stop_reason=agreed_reason(votes[:-2].tolist()),
        skipped=skipped,
        save_failed=bool(votes[-2] > 0),
        record_failed=bool(votes[-1] > 0),
        distilled_tokens=batches.num_distilled_tokens,
        sum_of_kl=float(kl),
    )


def _votes(run: Run) -> torch.Tensor:
    """fp64 [reasons + 2]: what this rank says about stopping, and whether it knows of a failed save or record."""
    own = [*(reason == run.stop_reason for reason in REASONS), run.saver.failed, run.directory.failed]
    return torch.tensor(own, dtype=torch.float64)


def _skipped_step(run: Run, index: int, stage: StageConfig) -> StepResult:
    """A step that the ledger skips: only the position moves, and the ranks hear each other's signals."""
    begin = time.perf_counter()
    run.activity.enter("agreement", run.step + 1)
    votes = _votes(run)
    votes = run.world.sum(votes).cpu()
    run.position += run.order.stages[index].batch_samples
    nothing = [0] * len(run.sources)
    return StepResult(
        step=run.step,
        stage=stage.name,
        learning_rate=run.learning_rate(index, run.progress(index)),
        grad_norm=0.0,
        nll_by_source=[0.0] * len(run.sources),
        target_tokens_by_source=nothing,
        input_tokens_by_source=nothing,
        samples_by_source=nothing,
        skipped_pieces_by_source=nothing,
        skipped_tokens_by_source=nothing,
        joined_tokens_by_source=nothing,
        seconds=time.perf_counter() - begin,
        data_wait_seconds=0.0,
        straggler=None,
        stop_reason=agreed_reason(votes[:-2].tolist()),
        skipped="the ledger says so",
        save_failed=bool(votes[-2] > 0),
        record_failed=bool(votes[-1] > 0),
    )
