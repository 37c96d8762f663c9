"""When a job has to stop before its end: a touched file or the time limit.

Signals reach the batch script alone (torchrun and deepspeed swallow them or kill their workers), and it touches the
file. What all ranks do about it is agreed in `training/trainer.py`; here is only what one rank sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

SIGNAL = "signal"
TIME_LIMIT = "time limit"
STOP_FILE = "stop file"
REASONS = (SIGNAL, TIME_LIMIT, STOP_FILE)
"""In the order of precedence, the last first: who touches the file of the run means the run, not the job."""


def agreed_reason(votes: Sequence[float]) -> str | None:
    """The reason of highest precedence that any rank voted for, given the votes for each of `REASONS`."""
    voted = [reason for reason, count in zip(REASONS, votes, strict=True) if count > 0]
    return voted[-1] if voted else None


class StopWatch:
    """Looks for `run_dir`/stop (a user), `start`/stop (the batch script) and at the clock.

    `end_time` is the Unix time at which the job is killed, `margin_seconds` the least time to leave before it.
    """

    def __init__(self, run_dir: Path, start: Path | None, end_time: float | None, margin_seconds: float) -> None:
        self.run_file = run_dir / "stop"
        self._start_file = start / "stop" if start else None
        self._end_time, self._margin = end_time, margin_seconds

    def forget_old_request(self) -> bool:
        """Remove a stop file that was there before this job; whether there was one."""
        found = self.run_file.exists()
        self.run_file.unlink(missing_ok=True)
        return found

    def reason(self, now: float, save_seconds: float, step_seconds: float) -> str | None:
        """Why to stop now, if at all, given the longest save and step of this job so far."""
        if self.run_file.exists():
            return STOP_FILE
        if self._start_file is not None and self._start_file.exists():
            return SIGNAL
        if self._end_time is not None and now + self.needed_seconds(save_seconds, step_seconds) >= self._end_time:
            return TIME_LIMIT
        return None

    def needed_seconds(self, save_seconds: float, step_seconds: float) -> float:
        """Time to leave before the end: the configured margin, or twice a save and two steps where that is more.

        The request is seen after one step, agreed on in the next, and the save comes after that.
        """
        return max(self._margin, 2 * save_seconds + 2 * step_seconds)
