"""Who is behind: heartbeats of ranks, what they say when one is missing, which node is to blame.

Judgements are functions of values; the few functions that read run_dir/health say so. Heartbeats are written, and
asked for over the network, by `heartbeat.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PHASES = (
    "start",
    "set up",
    "data",
    "meeting",
    "forward and backward",
    "agreement",
    "optimizer",
    "evaluation",
    "checkpoint",
    "end",
)
"""What a rank does, in the order within a step; in `meeting` and `agreement` it waits for all others."""
OWN_TIME = ("data", "forward and backward", "optimizer", "probe")
"""Phases whose time is a rank's own, for the straggler report: waiting for data in seconds of the clock; forward,
backward and optimizer in seconds of the processor, since a rank that waits for others in them spends none; and the
probe, a small matrix product on the device, in seconds of the clock."""


class RankLostError(Exception):
    """A rank is missing or stuck; each line of `lines` names one."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines
        super().__init__("\n".join(lines))


@dataclass(frozen=True)
class Peer:
    """Another rank and where it answers."""

    rank: int
    node: str
    address: str
    port: int


@dataclass(frozen=True)
class State:
    """What a rank does at a moment."""

    step: int
    """The step it works on, from 1."""
    phase: str
    seconds: float
    """For how long."""

    @property
    def place(self) -> tuple[int, int]:
        """States with a smaller place are behind."""
        return self.step, PHASES.index(self.phase)

    def __str__(self) -> str:
        return f"step {self.step}, {self.phase}, for {self.seconds:.0f} s"


@dataclass(frozen=True)
class Missing:
    """A rank that others wait for."""

    peer: Peer
    why: str

    def __str__(self) -> str:
        return f"rank {self.peer.rank} on {self.peer.node} ({self.peer.address}) {self.why}"


def missing_ranks(own: State, answers: Mapping[Peer, State | None], witnesses: Iterable[int] = ()) -> list[Missing]:
    """The ranks that keep this one, in state `own`, waiting.

    `answers` has the state of each other rank, None where it didn't answer. `witnesses` are ranks that have ended
    because they themselves missed one: they are named only where nobody else is missing. Without silent ranks, those
    behind the foremost are missing; where all are at one place nobody is.
    """
    silent = [peer for peer, state in answers.items() if state is None]
    first = [peer for peer in silent if peer.rank not in set(witnesses)]
    if silent:
        return [Missing(peer, "doesn't answer") for peer in first or silent]
    foremost = max([own, *(state for state in answers.values() if state)], key=lambda state: state.place).place
    return [Missing(p, f"is still at {state}") for p, state in answers.items() if state and state.place < foremost]


_COLLECTIVE = re.compile(
    "connection closed by peer|connection reset|connection refused|broken pipe|timed out|timeout|pair closure|nccl|"
    "socket|clients joined|network is unreachable|no route to host",
    re.IGNORECASE,
)


def is_collective_failure(error: BaseException | None) -> bool:
    """Whether an exception, or one that it comes from, says that another rank couldn't be reached."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if _COLLECTIVE.search(f"{type(error).__name__} {error}"):
            return True
        error = error.__cause__ or error.__context__
    return False


@dataclass(frozen=True)
class Straggler:
    """The slowest rank of a step and the phase in which it lost most against the median rank."""

    rank: int
    phase: str
    seconds: float
    median_seconds: float


def straggler(own_seconds: list[list[float]]) -> Straggler | None:
    """The straggler, given the seconds [rank][phase of OWN_TIME] of one step; None for a single rank."""
    if len(own_seconds) < 2:
        return None
    found = []
    for index, phase in enumerate(OWN_TIME):
        column = [row[index] for row in own_seconds]
        median = sorted(column)[(len(column) - 1) // 2]
        found.append(Straggler(column.index(max(column)), phase, max(column), median))
    return max(found, key=lambda one: one.seconds - one.median_seconds)


def heartbeat_path(run_dir: Path, rank: int) -> Path:
    """The heartbeat file of a rank."""
    return run_dir / "health" / f"rank-{rank:05d}.json"


def read_heartbeat(run_dir: Path, rank: int) -> dict[str, Any] | None:
    """A rank's newest heartbeat, if there is a readable one."""
    try:
        return json.loads(heartbeat_path(run_dir, rank).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def read_reports(run_dir: Path, start: str) -> list[dict[str, Any]]:
    """What ranks of a start said about missing ones before they ended (run_dir/health/lost.jsonl)."""
    path = run_dir / "health" / "lost.jsonl"
    if not path.is_file():
        return []
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    return [report for report in map(json.loads, lines) if report["start"] == start]


def append_report(run_dir: Path, report: dict[str, Any]) -> None:
    """Add a line to run_dir/health/lost.jsonl."""
    with open(run_dir / "health" / "lost.jsonl", "a", encoding="utf-8") as handle:
        handle.write(json.dumps(report) + "\n")


def blamed_nodes(run_dir: Path, start: str, nodes: list[str]) -> list[str]:
    """The nodes that most ranks of a failed start missed; none where two nodes only accuse each other."""
    accusers: dict[str, set[int]] = {}
    for report in read_reports(run_dir, start):
        for lost in report["lost"]:
            if lost["node"] in nodes and lost["node"] != report["node"]:
                accusers.setdefault(lost["node"], set()).add(report["rank"])
    most = max(map(len, accusers.values()), default=0)
    blamed = sorted(node for node, ranks in accusers.items() if len(ranks) == most)
    return blamed if len(blamed) < len(nodes) else []


def newest_checkpoint(run_dir: Path) -> str:
    """Name of the newest checkpoint of a run, or an empty string."""
    return max((path.parent.name for path in (run_dir / "checkpoints").glob("step-*/manifest.json")), default="")
