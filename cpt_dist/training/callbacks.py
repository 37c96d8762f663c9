"""What happens around the steps: metrics, checkpoints, evaluation, progress, requests to stop.

Each callback does one of them and is called on every rank in the same order. None of them changes the training
trajectory, save adaptive replay, which does it through the ledger.
"""

from __future__ import annotations

import time

from cpt_dist.checkpoint.probe import Probe
from cpt_dist.data.gate_decision import forks
from cpt_dist.data.view_names import source_of
from cpt_dist.evaluation_schedule import is_due
from cpt_dist.forgetting_config import STOP, has_budget
from cpt_dist.training.accounting import checked_accounts
from cpt_dist.training.adaptive_replay import AdaptiveReplay
from cpt_dist.training.callback import Callback
from cpt_dist.training.held_out import HeldOut
from cpt_dist.training.held_out_curves import HeldOutCurves, held_out_line
from cpt_dist.training.metrics import MetricsWriter, WandbMirror
from cpt_dist.training.progress import ProgressDisplay
from cpt_dist.training.retention_budget import RetentionBudget, budget_record, exceeded, in_words
from cpt_dist.training.run import Run, StepResult
from cpt_dist.training.stop_requests import StopRequests


class HeldOutEvaluation(Callback):
    """Bits per byte of held-out text inside the job: before the first step, every n steps and at the end."""

    def on_start(self, run: Run) -> None:
        config = run.config
        self._held_out = HeldOut(run)
        self._curves = HeldOutCurves(run.directory.metrics) if run.world.is_first else None
        self._adaptive_replay = AdaptiveReplay(run) if config.replay.rule != "off" else None
        self._budget = RetentionBudget(run) if has_budget(config.forgetting) else None
        # A budget that has stopped the run stops it again where nothing was changed.
        again = self._budget is not None and config.forgetting.action == STOP and self._is_due(run, run.step)
        if run.position == run.origin or again:
            self._evaluate(run)

    def after_step(self, run: Run, result: StepResult) -> None:
        if self._is_due(run, result.step):
            self._evaluate(run)

    @staticmethod
    def _is_due(run: Run, step: int) -> bool:
        evaluation = run.config.evaluation
        return run.finished or is_due(evaluation.schedule, evaluation.every_steps, step, run.num_steps)

    def _evaluate(self, run: Run) -> None:
        run.activity.enter("evaluation")
        scores = self._held_out.scores(run)
        run.bits_per_byte = (run.step, {name: one.summary()["bits_per_byte"] for name, one in scores.items()})
        # Weights that the run goes back behind are not judged.
        judged = self._budget.judge(run, scores) if self._budget is not None and run.rewind_to is None else []
        if self._curves is not None:
            roles = {source_of(source.name): source.role for source in run.sources}
            record = self._curves.record(run.step, {name: one.summary() for name, one in scores.items()}, roles)
            record |= {"budget": budget_record(judged)} if judged else {}
            run.directory.append_metrics(record)
            run.last_evaluation = record
            print(f"step {run.step}/{run.num_steps} {held_out_line(record, roles)}", flush=True)
        raised = None
        if self._adaptive_replay is not None:
            acts = self._budget is not None and self._budget.raises_replay
            raised = self._adaptive_replay.observe(run, scores, in_words(exceeded(judged)) if acts else "")
        if self._budget is not None:
            self._budget.act(run, judged, raised)


class Checkpoints(Callback):
    """A checkpoint every n steps, at the end of each stage, and when the job was asked to stop."""

    def on_start(self, run: Run) -> None:
        self._prepared = False

    def after_step(self, run: Run, result: StepResult) -> None:
        if result.save_failed:
            run.saver.wait()
        self._record(run)
        if run.rewind_to is not None:
            return
        every = run.config.checkpoint.every_steps
        if result.skipped and run.guards.in_trouble(run.order, run.position):
            every = 0  # the weights are under suspicion, and are those of a checkpoint before it anyway
        at_edge = run.position in run.order.stage_starts
        asked = result.stop_requested or run.refusal is not None
        if at_edge or run.finished or asked or (every > 0 and result.step % every == 0):
            self.save(run)
        elif not self._prepared:
            # A step has been made, so the memory that is free now stays free.
            run.saver.prepare(run.engine.state_tensors())
        self._prepared = True

    def save(self, run: Run) -> None:
        """Write the checkpoint of the present step."""
        run.activity.enter("checkpoint")
        accounts = checked_accounts(run)
        trainer = {
            "step": run.step,
            "position": run.position,
            "optimizer_steps": run.step - run.totals.skipped_steps,
            "updates": run.engine.updates.state(),
            "order": run.order.state(run.position),
            "sources": run.order.source_names,
            "totals": vars(run.totals),
            "guards": run.guards.state(),
            "engine": run.engine.name,
            "world_size": run.world.size,
            "rope": run.changed_rope(),
            "forks": len(forks(run.order.entries)),
            **({"teacher": run.teacher} if run.teacher is not None else {}),
        }
        evaluated_step, bits_per_byte = run.bits_per_byte
        run.saver.save(
            run.step,
            run.engine.state_tensors(),
            trainer,
            self._probe(run),
            bits_per_byte if evaluated_step == run.step else None,
            {"accounts": accounts},
        )
        self._record(run)

    def on_end(self, run: Run) -> None:
        self._record(run)

    @staticmethod
    def _record(run: Run) -> None:
        """A line for each checkpoint that is there since the last call."""
        for report in run.saver.reports() if run.world.is_first else ():
            run.longest_save_seconds = max(run.longest_save_seconds, report.stall_seconds + report.write_seconds)
            record = {
                "kind": "checkpoint",
                "step": report.step,
                "time": time.time(),
                "asynchronous": report.asynchronous,
                "stall_seconds": report.stall_seconds,
                "write_seconds": report.write_seconds,
                "path": str(report.path),
                **report.notes,
            }
            run.directory.append_metrics(record)

    @staticmethod
    def _probe(run: Run) -> Probe:
        # Real text from the run's own data: its first row, the same on every rank and in every checkpoint.
        input_ids = run.probe_ids()
        return Probe(input_ids, run.engine.logits(input_ids).cpu())


def default_callbacks(run: Run) -> list[Callback]:
    """The callbacks that the configuration asks for, in the order in which they are called."""
    chosen: list[Callback] = [StopRequests()]
    if run.world.is_first:
        chosen += [MetricsWriter(), ProgressDisplay()]
        if run.config.logging.wandb:
            chosen.append(WandbMirror())
    if run.config.evaluation.during_training:
        chosen.append(HeldOutEvaluation())
    if run.config.suites.every_steps:
        from cpt_dist.training.asked_suites import AskedSuites

        chosen.append(AskedSuites())
    chosen.append(Checkpoints())
    return chosen
