"""What this rank does, told to the world: a heartbeat file and a port that answers.

A thread writes run_dir/health/rank-00000.json now and then and warns where the rank stays in one phase too long; the
port tells other ranks the same, also where the file system is gone. The training thread only sets two values.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cpt_dist.cluster.environment import host_name
from cpt_dist.cluster.health import Peer, State, heartbeat_path

ANSWER_SECONDS = 3.0
"""How long a rank may take to answer: it has a thread for nothing else."""


class Activity:
    """Step and phase of this rank, and the time that each phase took."""

    def __init__(self) -> None:
        self.step, self.phase = 0, "start"
        self.clock: dict[str, float] = {}
        """Phase -> seconds of the clock since the last `reset`."""
        self.processor: dict[str, float] = {}
        """Phase -> seconds of this process on its processors since then."""
        self._since, self._processor_since = time.monotonic(), time.process_time()

    def enter(self, phase: str, step: int | None = None) -> None:
        """From now on this rank is in `phase`."""
        now, processor = time.monotonic(), time.process_time()
        self.clock[self.phase] = self.clock.get(self.phase, 0.0) + now - self._since
        self.processor[self.phase] = self.processor.get(self.phase, 0.0) + processor - self._processor_since
        self.step, self.phase = self.step if step is None else step, phase
        self._since, self._processor_since = now, processor

    def reset(self) -> None:
        """Begin to count from zero."""
        self.clock, self.processor = {}, {}

    @property
    def state(self) -> State:
        """What this rank does now."""
        return State(self.step, self.phase, time.monotonic() - self._since)


class Heartbeat:
    """The thread that writes heartbeats and the one that answers."""

    def __init__(self, run_dir: Path, rank: int, activity: Activity, start: str, every_seconds: float) -> None:
        self.node, self.begin = host_name(os.environ), time.time()
        self._path, self._rank, self._activity = heartbeat_path(run_dir, rank), rank, activity
        self._start, self._every = start, every_seconds
        self._warn_after: float | None = None
        self._on_stuck: Callable[[], object] = lambda: None
        self._ended = threading.Event()
        self._server = socket.create_server(("", 0), backlog=128)
        self.port = self._server.getsockname()[1]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._write()
        for work in (self._beat, self._answer):
            threading.Thread(target=work, name="heartbeat", daemon=True).start()

    def warn(self, after_seconds: float, on_stuck: Callable[[], object]) -> None:
        """Call `on_stuck` from the thread, once for each phase that lasts longer."""
        self._warn_after, self._on_stuck = after_seconds, on_stuck

    def stop(self) -> None:
        """Write a last heartbeat and end both threads."""
        self._ended.set()
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)  # closing alone doesn't wake the thread
        self._server.close()
        self._write()

    def message(self) -> str:
        """The heartbeat, as JSON."""
        state = self._activity.state
        return json.dumps(
            {
                "rank": self._rank,
                "node": self.node,
                "pid": os.getpid(),
                "port": self.port,
                "start": self._start,
                "step": state.step,
                "phase": state.phase,
                "seconds": round(state.seconds, 3),
                "time": time.time(),
            }
        )

    def _write(self) -> None:
        # Not flushed to the disk: after a power cut nobody asks for it.
        temporary = self._path.with_name(f".{self._path.name}.tmp")
        with contextlib.suppress(OSError):  # a full disk is reported by what can't do without
            temporary.write_text(self.message() + "\n", encoding="utf-8")
            os.replace(temporary, self._path)

    def _beat(self) -> None:
        warned: tuple[int, str] | None = None
        while not self._ended.wait(self._every or 5.0):
            if self._every:
                self._write()
            state = self._activity.state
            if self._warn_after and state.seconds > self._warn_after and warned != (state.step, state.phase):
                warned = (state.step, state.phase)
                self._on_stuck()

    def _answer(self) -> None:
        while not self._ended.is_set():
            try:
                connection, _ = self._server.accept()
            except OSError:  # closed by `stop`
                return
            with connection, contextlib.suppress(OSError):
                connection.settimeout(ANSWER_SECONDS)
                connection.sendall(self.message().encode())


def own_address(environ: Mapping[str, str]) -> str:
    """The address under which ranks on other nodes reach this one: that of the way to the first."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
        try:
            way.connect((environ.get("MASTER_ADDR", "localhost"), 9))  # sends nothing
        except OSError:
            return "localhost"
        return way.getsockname()[0]


def ask(peer: Peer) -> State | None:
    """What a rank does now; None where it doesn't answer."""
    try:
        with socket.create_connection((peer.address, peer.port), ANSWER_SECONDS) as connection:
            connection.settimeout(ANSWER_SECONDS)
            with connection.makefile("r", encoding="utf-8") as answer:
                said = json.loads(answer.read())
    except (OSError, ValueError):
        return None
    return State(said["step"], said["phase"], said["seconds"]) if said["rank"] == peer.rank else None


def ask_all(peers: Iterable[Peer]) -> dict[Peer, State | None]:
    """What all `peers` do now."""
    peers = list(peers)
    with ThreadPoolExecutor(max_workers=64) as pool:
        return dict(zip(peers, pool.map(ask, peers), strict=True))


def say(rank: int, line: str) -> None:
    """A warning on standard error, named after the rank."""
    print(f"warning (rank {rank}): {line}", file=sys.stderr, flush=True)
