"""The hooks around the training loop."""

from __future__ import annotations

from cpt_dist.training.run import Run, StepResult


class Callback:
    """Hooks that the loop calls on every rank that has the callback; each does nothing here."""

    def on_start(self, run: Run) -> None:
        """Before the first step of this job."""

    def after_step(self, run: Run, result: StepResult) -> None:
        """After every step."""

    def on_end(self, run: Run) -> None:
        """After the last step of this job, whether or not the run is finished."""
