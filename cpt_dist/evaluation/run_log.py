"""What a run did, read back from its metrics.jsonl.

A killed run leaves steps that its successor makes again, and perhaps a torn line; the log keeps the steps that led
to the final model and counts the rest. It takes what it finds: a metrics file without some field is not an error.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

_START_KEYS = ("step", "engine", "zero_stage", "world_size", "device", "precision")


@dataclass
class RunLog:
    """Records of metrics.jsonl by kind, in order."""

    steps: list[dict[str, Any]] = field(default_factory=list)
    """The steps that the final weights have seen, each once."""
    starts: list[dict[str, Any]] = field(default_factory=list)
    """The start of the run and every resume."""
    checkpoints: list[int] = field(default_factory=list)
    """Steps at which a checkpoint was written."""
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    """Held-out evaluations within the run, each step once."""
    num_lost_steps: int = 0
    """Recorded steps that came after the checkpoint from which the run went on."""
    num_unreadable_lines: int = 0

    @classmethod
    def read(cls, path: Path) -> RunLog | None:
        """The log in `path`, or None if there is no such file or nothing in it."""
        if not path.is_file():
            return None
        log = cls()
        for line in path.read_bytes().splitlines():
            try:
                record = json.loads(line)
                kind, step = record["kind"], int(record["step"])
            except (ValueError, KeyError, TypeError, AttributeError):
                log.num_unreadable_lines += 1
                continue
            log._take(kind, step, record)
        return log if log.steps or log.starts else None

    @property
    def began(self) -> float | None:
        """When the run was started first, in seconds since 1970: the same wherever its folder is moved to."""
        time = self.starts[0].get("time") if self.starts else None
        return float(time) if isinstance(time, (int, float)) else None

    def _take(self, kind: str, step: int, record: dict[str, Any]) -> None:
        if kind == "step":
            self._forget_after(step - 1)
            self.steps.append(record)
        elif kind in ("run", "resume"):
            self._forget_after(step)
            self.starts.append(record)
        elif kind == "checkpoint":
            self.checkpoints = sorted({*self.checkpoints, step})
        elif kind == "evaluation":
            _drop_after(self.evaluations, step - 1)
            self.evaluations.append(record)

    def _forget_after(self, step: int) -> None:
        self.num_lost_steps += _drop_after(self.steps, step)
        _drop_after(self.evaluations, step)

    def facts(self) -> dict[str, Any]:
        """The run in a few numbers, as report.json keeps it (docs/evaluation.md)."""
        last = self.steps[-1] if self.steps else {}
        planned, realised = last.get("planned_tokens", {}), last.get("realised_tokens", {})
        speeds = [record["tokens_per_second"] for record in self.steps if record.get("tokens_per_second")]
        return {
            "model": next((start["model"] for start in self.starts if "model" in start), None),
            "parameters": next((start["num_parameters"] for start in self.starts if "num_parameters" in start), None),
            "steps": last.get("step", 0),
            "stages": list(dict.fromkeys(record["stage"] for record in self.steps if "stage" in record)),
            "tokens": last.get("tokens"),
            "tokens_per_second": median(speeds) if speeds else None,
            "first_loss": self.steps[0].get("loss") if self.steps else None,
            "last_loss": last.get("loss"),
            "sources": [
                {"source": name, "planned_tokens": planned.get(name), "realised_tokens": realised.get(name)}
                for name in dict.fromkeys([*planned, *realised])
            ],
            "starts": [{key: start.get(key) for key in _START_KEYS} for start in self.starts],
            "checkpoints": self.checkpoints,
            "lost_steps": self.num_lost_steps,
            "unreadable_lines": self.num_unreadable_lines,
        }


def _drop_after(records: list[dict[str, Any]], step: int) -> int:
    """Take the records beyond `step` off the end of `records`, which rise in step; how many those were."""
    before = len(records)
    while records and records[-1]["step"] > step:
        records.pop()
    return before - len(records)
