"""What becomes of a batch job whose ranks have ended: python -m cpt_dist.cluster.requeue, asked by the batch script.

It reads the outcome that the ranks left, writes a line to run_dir/slurm/history.jsonl and prints one line: exit code,
`requeue` or `stop`, seconds to wait, nodes to exclude. The script does it; here nothing talks to Slurm.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpt_dist.cluster.health import blamed_nodes, newest_checkpoint
from cpt_dist.cluster.start_folder import read_outcome
from cpt_dist.cluster.stop import STOP_FILE

EXIT_ASKED_TO_STOP = 75
LONGEST_DELAY = 3600


@dataclass(frozen=True)
class Policy:
    """The fields of `cluster` that decide."""

    requeue: bool
    max_restarts: int
    max_failures: int
    backoff_seconds: int
    node_failures: int


@dataclass(frozen=True)
class Decision:
    """What the batch script does."""

    exit_code: int
    requeue: bool
    delay_seconds: int
    exclude: list[str]
    why: str

    def line(self) -> str:
        """For the script's `read`."""
        action = "requeue" if self.requeue else "stop"
        return f"{self.exit_code} {action} {self.delay_seconds} {','.join(self.exclude)}".strip()


def decide(history: list[dict[str, Any]], restarts: int, policy: Policy) -> Decision:
    """The decision after the newest start, the last of `history`.

    A job that was asked to stop goes on at once, unless it was by the stop file of the run; a mistake of the user and
    a finished run stay ended; a failure waits, twice as long each time, and counts up to `max_failures` as long as no
    new checkpoint comes between.
    """
    newest = history[-1]
    code, reason = newest["code"], newest["reason"]
    exclude = excluded_nodes(history, policy.node_failures)
    if code in (0, 2):
        return Decision(code, False, 0, [], reason)
    if code == EXIT_ASKED_TO_STOP and reason == STOP_FILE:
        return Decision(code, False, 0, [], f"the {STOP_FILE} of the run")
    if not policy.requeue:
        return Decision(code, False, 0, [], "cluster.requeue is off")
    if restarts >= policy.max_restarts:
        return Decision(code, False, 0, [], f"{restarts} restarts, as many as cluster.max_restarts")
    if code == EXIT_ASKED_TO_STOP:
        return Decision(code, True, 0, exclude, reason)
    failures = failures_in_a_row(history)
    if failures >= policy.max_failures:
        return Decision(code, False, 0, [], f"{failures} failures without a new checkpoint")
    delay = min(policy.backoff_seconds * 2 ** (failures - 1), LONGEST_DELAY)
    return Decision(code, True, delay, exclude, f"failure {failures} since the newest checkpoint")


def failures_in_a_row(history: list[dict[str, Any]]) -> int:
    """Failed starts at the end of `history` that left the same newest checkpoint."""
    number = 0
    for entry in reversed(history):
        if entry["code"] in (0, EXIT_ASKED_TO_STOP) or entry["checkpoint"] != history[-1]["checkpoint"]:
            break
        number += 1
    return number


def excluded_nodes(history: list[dict[str, Any]], limit: int) -> list[str]:
    """Nodes that were blamed for `limit` failures; none with limit 0."""
    counts = Counter(node for entry in history for node in entry["blamed"])
    return sorted(node for node, count in counts.items() if 0 < limit <= count)


def after_start(run_dir: Path, start: Path, nodes: list[str], restarts: int, policy: Policy) -> Decision:
    """Record how `start` ended and decide."""
    path = run_dir / "slurm" / "history.jsonl"
    history = read_history(path)
    outcome = read_outcome(start)
    code, reason = outcome or (1, "the ranks ended without a word")
    entry = {
        "start": start.name,
        "time": time.time(),
        "nodes": nodes,
        "code": code,
        "reason": reason,
        "checkpoint": newest_checkpoint(run_dir),
        "blamed": [] if outcome else blamed_nodes(run_dir, start.name, nodes),
    }
    decision = decide([*history, entry], restarts, policy)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as handle:
        handle.write(json.dumps(entry | {"decision": decision.line(), "why": decision.why}) + "\n")
    return decision


def read_history(path: Path) -> list[dict[str, Any]]:
    """The entries of a history file, oldest first."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]


def main() -> None:
    """Print the decision."""
    parser = argparse.ArgumentParser(description="Decide what becomes of a batch job whose ranks have ended.")
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--start", type=Path, required=True)
    parser.add_argument("--nodes", required=True)
    for key in ("restarts", "requeue", "max-restarts", "max-failures", "backoff-seconds", "node-failures"):
        parser.add_argument(f"--{key}", type=int, required=True)
    given = parser.parse_args()
    policy = Policy(
        bool(given.requeue), given.max_restarts, given.max_failures, given.backoff_seconds, given.node_failures
    )
    nodes = [node for node in given.nodes.split(",") if node]
    print(after_start(given.run_dir, given.start, nodes, given.restarts, policy).line())


if __name__ == "__main__":
    main()
