"""The numbers of each step: into metrics.jsonl always, to Weights & Biases when the user asks.

docs/run_directory.md lists the fields. Only rank 0 has these callbacks; what they record is the same on all ranks.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from cpt_kernels import chosen

from cpt_dist.data.view_names import by_source, parted
from cpt_dist.errors import UserError
from cpt_dist.training.callback import Callback
from cpt_dist.training.run import Run, StepResult
from cpt_dist.training.throughput import measured_peak_flops, resident_bytes


def step_record(run: Run, result: StepResult, tokens_per_second: float, peak_flops: float) -> dict[str, Any]:
    """The line of metrics.jsonl for one step; `peak_flops` is that of one device."""
    names = [source.name for source in run.sources]
    stage = next(stage for stage in run.config.stages if stage.name == result.stage)
    flops = run.engine.model.flops_per_token(stage.seq_len) * tokens_per_second
    if run.engine.teacher is not None:
        flops += run.engine.teacher.flops_per_token(stage.seq_len) * result.distilled_tokens / result.seconds
    nll: dict[str, float] = dict(zip(names, result.nll_by_source, strict=True))
    targets: dict[str, int] = dict(zip(names, result.target_tokens_by_source, strict=True))
    planned = run.order.planned_tokens(run.position)
    realised = dict(zip(names, run.totals.input_tokens_by_source, strict=True))
    return {
        "kind": "step",
        "step": result.step,
        "stage": result.stage,
        "samples": run.position,
        "loss": result.loss,
        "loss_by_source": _losses(by_source(nll), by_source(targets)),
        "lr": result.learning_rate,
        "grad_norm": result.grad_norm,
        "tokens": run.totals.input_tokens,
        "target_tokens": result.target_tokens,
        "joined_tokens": sum(result.joined_tokens_by_source),
        "seconds": result.seconds,
        "tokens_per_second": tokens_per_second,
        "mfu": flops / (peak_flops * run.world.size),
        "data_wait_share": result.data_wait_seconds / result.seconds,
        "straggler": _straggler_record(run, result),
        "memory_bytes": resident_bytes(run.world.device),
        "planned_tokens": by_source(planned),
        "realised_tokens": by_source(realised),
        **_strata(names, _losses(nll, targets), planned, realised),
        **_distillation(run, result),
        **_skipped(run),
        "time": time.time(),
    }


def _distillation(run: Run, result: StepResult) -> dict[str, Any]:
    if run.distillation is None:
        return {}
    return {"distillation_kl": result.distillation_kl, "distilled_tokens": result.distilled_tokens}


def _skipped(run: Run) -> dict[str, int]:
    """Pieces and tokens skipped so far, in a run in which documents were taken down."""
    if not run.order.take_downs:
        return {}
    totals = run.totals
    return {
        "skipped_pieces": sum(totals.skipped_pieces_by_source),
        "skipped_tokens": sum(totals.skipped_tokens_by_source),
    }


def _losses(nll: Mapping[str, float], targets: Mapping[str, float]) -> dict[str, float]:
    return {name: nll[name] / number for name, number in targets.items() if number}


def _strata(
    names: list[str], losses: Mapping[str, float], planned: Mapping[str, float], realised: Mapping[str, int]
) -> dict[str, Any]:
    """The numbers of strata and generations, each under its name; nothing where no source has them."""
    strata = {
        name: {"loss": losses.get(name), "planned_tokens": planned[name], "realised_tokens": realised[name]}
        for name in parted(names)
    }
    return {"strata": strata} if strata else {}


def _straggler_record(run: Run, result: StepResult) -> dict[str, Any] | None:
    slowest = result.straggler
    if slowest is None:
        return None
    node = run.nodes[slowest.rank] if run.nodes else None
    return {"node": node} | vars(slowest)


class MetricsWriter(Callback):
    """Appends a line to metrics.jsonl every `logging.every_steps` steps and at the end."""

    def on_start(self, run: Run) -> None:
        configured = run.config.logging.peak_tflops * 1e12
        self._peak_flops = configured or measured_peak_flops(run.world.device, run.engine.compute_dtype)
        self._kernels_recorded = False

    def after_step(self, run: Run, result: StepResult) -> None:
        if result.skipped:
            return  # recorded as what it is: a skip
        if not self._kernels_recorded:  # which backends ran is known once they have
            record = {"kind": "kernels", "step": result.step, "chosen": chosen()}
            run.directory.append_metrics(record | {"installed": run.engine.model.kernels})
            self._kernels_recorded = True
        if result.step % run.config.logging.every_steps == 0 or run.finished or result.stop_requested:
            record = step_record(run, result, result.input_tokens / result.seconds, self._peak_flops)
            run.directory.append_metrics(record)
            run.last_record = record


_EVALUATION = ("sources", "changes", "gain", "forgetting", "budget")
"""Of a record of kind evaluation, what goes to Weights & Biases."""


class WandbMirror(Callback):
    """Sends the same records to Weights & Biases, one run for all starts of a run directory."""

    def on_start(self, run: Run) -> None:
        try:
            import wandb
        except ImportError as error:
            raise UserError(
                "logging.wandb: wandb is not installed; pip install 'cpt_dist[wandb]' or turn it off"
            ) from error
        from omegaconf import OmegaConf

        self._sent: dict[str, Any] = {}
        has_key = bool(os.environ.get("WANDB_API_KEY"))
        self._wandb = wandb.init(
            project=run.config.logging.wandb_project,
            name=run.directory.path.name,
            dir=str(run.directory.path),
            mode=os.environ.get("WANDB_MODE", "online" if has_key else "offline"),  # type: ignore[arg-type]
            config=OmegaConf.to_container(OmegaConf.structured(run.config)),  # type: ignore[arg-type]
        )

    def after_step(self, run: Run, result: StepResult) -> None:
        self._send_evaluation(run)
        if run.last_record.get("step") == result.step:
            self._wandb.log(run.last_record, step=result.step)

    def on_end(self, run: Run) -> None:
        self._send_evaluation(run)
        self._wandb.finish()

    def _send_evaluation(self, run: Run) -> None:
        """The newest evaluation, made after this callback's turn in its step, under that step."""
        if run.last_evaluation and run.last_evaluation is not self._sent:
            self._sent = run.last_evaluation
            values = {key: run.last_evaluation[key] for key in _EVALUATION if key in run.last_evaluation}
            self._wandb.log({"held_out": values}, step=run.last_evaluation["step"])
