"""Ranks of a job as forks of one process that has imported everything, which takes seconds off the start of each.

They get a process group of their own, so that a signal to it meets all of them. It is no test of the launchers.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from cpt_dist.errors import UserError

SECONDS_TO_NOTICE = 60.0
"""A rank whose partner was killed has to end by itself within this time."""


def fork(size: int, log: Path, work: Callable[[int], None]) -> list[int]:
    """Start `size` ranks that call `work(rank)` and write to `log`; returns their process ids.

    A UserError ends a rank with code 2, any other with code 1.
    """
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    ranks: list[int] = []
    for rank in range(size):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.setpgid(0, ranks[0] if ranks else 0)
                output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(output, 1)
                os.dup2(output, 2)
                os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size)}
                os.environ |= {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size)}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
                work(rank)
                code = 0
            except UserError as error:
                print(f"error: {error}", flush=True)
                code = 2
            finally:
                if code == 1:
                    traceback.print_exc()
                sys.stdout.flush()
                os._exit(code)  # no exit handlers of the process that it was forked from
        os.setpgid(pid, ranks[0] if ranks else pid)
        ranks.append(pid)
    return ranks


def wait(ranks: Sequence[int], strike: Callable[[], bool] | None = None, victims: Sequence[int] = ()) -> list[int]:
    """Wait for all ranks, and kill `victims` as soon as `strike` says so; returns the status of each as of `waitpid`.

    Raises AssertionError where a rank goes on for long after another has ended.
    """
    statuses: dict[int, int] = {}
    lost = 0.0
    while len(statuses) < len(ranks):
        for pid in ranks:
            if pid not in statuses:
                ended, status = os.waitpid(pid, os.WNOHANG)
                statuses |= {pid: status} if ended else {}
        if strike is not None and strike():
            strike = None
            for pid in victims:
                if pid not in statuses:
                    os.kill(pid, signal.SIGKILL)
        now = time.monotonic()
        lost = lost or (now if statuses else 0.0)
        if lost and now - lost > SECONDS_TO_NOTICE:
            for pid in ranks:
                if pid not in statuses:
                    os.kill(pid, signal.SIGKILL)
            raise AssertionError(f"a rank did not notice within {SECONDS_TO_NOTICE:.0f} s that its partner was gone")
        time.sleep(0.01)
    return [statuses[pid] for pid in ranks]


def was_killed(status: int) -> bool:
    """Whether a process of this status was ended by kill -9."""
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
