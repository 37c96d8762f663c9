"""Curves of gain and forgetting inside training: each evaluation against the first one of the run.

The first one is read back from metrics.jsonl after a resume; where a source's held-out documents have changed since,
it has no curve, because the difference would be one of texts. Only rank 0 keeps curves.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_SAME = ("bytes", "documents")


class HeldOutCurves:
    """Makes the records of evaluations."""

    def __init__(self, metrics: Path) -> None:
        self._first = _first_evaluation(metrics)

    def record(
        self, step: int, sources: dict[str, dict[str, Any]], roles: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """The line of metrics.jsonl for the summaries (`DocumentScores.summary`) of an evaluation after `step`.

        `roles` of the sources say whose change is a gain and whose is forgetting.
        """
        if step == 0 or self._first is None:
            self._first = sources
        changes = {
            name: now["bits_per_byte"] - self._first[name]["bits_per_byte"]
            for name, now in sources.items()
            if name in self._first and all(now[key] == self._first[name].get(key) for key in _SAME)
        }
        record = {"kind": "evaluation", "step": step, "time": time.time(), "sources": sources, "changes": changes}
        if roles is not None:
            record["gain"] = {name: 0.0 - one for name, one in changes.items() if roles.get(name) == "domain"}
            record["forgetting"] = {name: one for name, one in changes.items() if roles.get(name) == "replay"}
        return record


def _first_evaluation(metrics: Path) -> dict[str, dict[str, Any]] | None:
    """The sources of the first evaluation in a metrics file; the newest of step 0 where a run was begun again."""
    first = None
    if not metrics.is_file():
        return None
    with open(metrics, "rb") as handle:
        for line in handle:
            if b'"evaluation"' not in line:
                continue
            try:
                record = json.loads(line)
            except ValueError:  # torn by a kill
                continue
            if record.get("kind") == "evaluation" and (first is None or record["step"] == 0):
                first = record["sources"]
    return first


def held_out_line(record: Mapping[str, Any], roles: Mapping[str, str]) -> str:
    """An evaluation on one line: bits per byte of each source, domain first, and the change since the start."""
    names = sorted(record["sources"], key=lambda name: roles.get(name) == "replay")
    parts = []
    for name in names:
        change = record["changes"].get(name)
        since = "" if change is None or record["step"] == 0 else f" ({change:+.4f})"
        if record.get("budget", {}).get(name, {}).get("outcome") == "exceeded":
            since += " over its budget"
        parts.append(f"{name} {record['sources'][name]['bits_per_byte']:.4f}{since}")
    return f"held-out bits per byte: {', '.join(parts)}" if parts else "no held-out text"
