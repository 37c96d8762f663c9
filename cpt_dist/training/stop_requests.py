"""Requests to stop, from wherever they come, noted for the agreement of the ranks at the end of a step.

SIGTERM, SIGUSR1 and a first Ctrl-C are noted by the rank that gets them; stop files and the time limit are seen by
rank 0 alone, which is on the first node as the batch script is. `train_step` makes the ranks agree.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from cpt_dist.cluster.environment import job_end_time
from cpt_dist.cluster.start_folder import start_folder
from cpt_dist.cluster.stop import SIGNAL, STOP_FILE, StopWatch
from cpt_dist.training.callback import Callback
from cpt_dist.training.run import Run, StepResult


class StopRequests(Callback):
    """Notes a request to stop; the checkpoint and the end of the job follow at the end of the next step."""

    def on_start(self, run: Run) -> None:
        def note(number: int, frame: Any) -> None:
            run.stop_reason = SIGNAL

        def note_once(number: int, frame: Any) -> None:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if run.world.is_first:
                print("stopping after this step, with a checkpoint; Ctrl-C again: at once, without one", flush=True)
            note(number, frame)

        self._previous = {which: signal.signal(which, note) for which in (signal.SIGTERM, signal.SIGUSR1)}
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, as in the background
            self._previous[signal.SIGINT] = signal.signal(signal.SIGINT, note_once)
        self._longest_step = 0.0
        margin = run.config.cluster.signal_margin_seconds
        self._watch = StopWatch(run.directory.path, start_folder(os.environ), job_end_time(os.environ), margin)
        if run.world.is_first and self._watch.forget_old_request():
            print(f"warning: {self._watch.run_file} was there before this start and was removed", flush=True)

    def after_step(self, run: Run, result: StepResult) -> None:
        self._longest_step = max(self._longest_step, result.seconds)
        if run.world.is_first:
            reason = self._watch.reason(time.time(), run.longest_save_seconds, self._longest_step)
            run.stop_reason = reason or run.stop_reason
            if result.stop_reason == STOP_FILE:
                self._watch.forget_old_request()

    def on_end(self, run: Run) -> None:
        for which, handler in self._previous.items():
            signal.signal(which, handler)
