"""The health of a job while it runs: heartbeats, who is missing when a collective fails, who is slow.

It joins `cluster/heartbeat.py`, which knows no process group, to the ranks of the job. What is checked of every node
before the start is in `node_check.py`.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from cpt_dist.cluster.health import (
    Missing,
    Peer,
    RankLostError,
    append_report,
    is_collective_failure,
    missing_ranks,
    read_heartbeat,
    read_reports,
)
from cpt_dist.cluster.heartbeat import ANSWER_SECONDS, Activity, Heartbeat, ask_all, own_address, say
from cpt_dist.cluster.start_folder import start_folder
from cpt_dist.config import CptConfig
from cpt_dist.engine.distributed import World


class Health:
    """Begins before the ranks meet, so that one which never comes can be named too."""

    def __init__(self, config: CptConfig) -> None:
        folder = start_folder(os.environ)
        self._config, self._run_dir = config, Path(config.run_dir)
        self._start = folder.name if folder else os.environ.get("TORCHELASTIC_RUN_ID", "")
        self._rank, self._size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self._peers: list[Peer] = []
        self.activity = Activity()
        every = config.health.heartbeat_seconds
        self._heartbeat = Heartbeat(self._run_dir, self._rank, self.activity, self._start, every)
        self.nodes = [self._heartbeat.node]
        """Node of each rank, once they have met."""

    def meet(self, world: World) -> None:
        """Tell all ranks where this one answers, and watch for phases that last too long."""
        if world.size > 1:
            own = Peer(world.rank, self._heartbeat.node, own_address(os.environ), self._heartbeat.port)
            everyone = world.gather(own)
            self.nodes = [peer.node for peer in everyone]
            self._peers = [peer for peer in everyone if peer != own]
            limit = self._config.health.warn_after_seconds or self._config.engine.timeout_seconds / 2
            self._heartbeat.warn(limit, self._warn)

    def end(self) -> None:
        """Stop the heartbeat."""
        self.activity.enter("end")
        self._heartbeat.stop()

    def explain(self, error: BaseException) -> None:
        """Raise RankLostError with the names of the missing ranks if `error` is a collective that failed for them."""
        if self._size < 2 or not is_collective_failure(error):
            return
        state = self.activity.state
        missing = self._missing() if self._peers else self._never_came()
        if not missing:
            return
        lost = [{"rank": one.peer.rank, "node": one.peer.node, "why": one.why} for one in missing]
        report = {"start": self._start, "rank": self._rank, "node": self._heartbeat.node, "time": time.time()}
        with contextlib.suppress(OSError):  # the names are worth more than the file
            append_report(self._run_dir, report | {"step": state.step, "phase": state.phase, "lost": lost})
        raise RankLostError([f"{state}: {self._line(one)}" for one in missing]) from error

    def _missing(self) -> list[Missing]:
        answers = ask_all(self._peers)
        witnesses = [report["rank"] for report in read_reports(self._run_dir, self._start) if self._is_new(report)]
        return missing_ranks(self.activity.state, answers, witnesses)

    def _never_came(self) -> list[Missing]:
        found = []
        for rank in range(self._size):
            beat = read_heartbeat(self._run_dir, rank)
            old = self._heartbeat.begin - self._config.engine.timeout_seconds
            if beat is None or beat["start"] != self._start or beat["phase"] == "end" or beat["time"] < old:
                found.append(Missing(Peer(rank, "an unknown host", "-", 0), "never started, or can't write to run_dir"))
        return found

    def _is_new(self, report: dict) -> bool:
        return report["time"] >= self._heartbeat.begin

    def _line(self, missing: Missing) -> str:
        beat = read_heartbeat(self._run_dir, missing.peer.rank)
        if beat is None:
            return str(missing)
        age = max(0.0, time.time() - beat["time"])
        return f"{missing}; its last heartbeat was {age:.0f} s ago in step {beat['step']}, {beat['phase']}"

    def _warn(self) -> None:
        state = self.activity.state
        missing = missing_ranks(state, ask_all(self._peers))
        named = "; ".join(self._line(one) for one in missing) or "no rank is behind"
        say(self._rank, f"still at {state}: {named} (answers within {ANSWER_SECONDS:.0f} s)")
