"""The progress display of rank 0: a live bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cpt_dist.training.callback import Callback
from cpt_dist.training.run import Run, StepResult

SECONDS_BETWEEN_LINES = 10.0


class ProgressDisplay(Callback):
    """Steps, loss, learning rate and tokens per second."""

    def on_start(self, run: Run) -> None:
        self._console = Console()
        self._total = run.num_steps
        self._last_line = 0.0
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]} · {task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("steps", total=self._total, completed=run.step, loss="–", rate="–")
        self._bar.start()

    def after_step(self, run: Run, result: StepResult) -> None:
        if result.skipped:
            print(f"{result.stage} step {result.step}/{self._total} skipped: {result.skipped}", flush=True)
            return
        speed = result.input_tokens / result.seconds
        rate = f"lr {result.learning_rate:.2e} · {speed:,.0f} tokens/s"
        if result.distillation_kl is not None:
            rate = f"kl {result.distillation_kl:.2e} · {rate}"
        self._bar.update(
            self._task, completed=result.step, description=result.stage, loss=f"{result.loss:.4f}", rate=rate
        )
        due = time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES
        if not self._console.is_terminal and (due or run.finished):
            self._last_line = time.monotonic()
            print(f"{result.stage} step {result.step}/{self._total} loss {result.loss:.4f} {rate}", flush=True)

    def on_end(self, run: Run) -> None:
        self._bar.stop()
