"""The part of the verdict about the way: gain and forgetting of the run's checkpoints, as trajectory.json has them.

Nothing is measured here. A trajectory counts only where it is of this run, against the same base, with the same
settings and margins; else the report says why it is left out, and the command that measures it.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cpt_dist.config import CptConfig
from cpt_dist.evaluation.claims import CONTROL
from cpt_dist.evaluation.run_log import RunLog
from cpt_dist.evaluation.trajectory_report import FORMAT
from cpt_dist.evaluation.verdict import UNIT, Judgement
from cpt_dist.model.folder import model_fingerprint

_KEYS = {
    "window_tokens": "evaluation.seq_len",
    "max_tokens": "evaluation.max_tokens",
    "num_resamples": "evaluation.bootstrap",
    "confidence": "evaluation.confidence",
    "seed": "seed",
}
"""Setting that numbers depend on -> its key."""


def trajectory_part(config: CptConfig, judgement: Judgement, log: RunLog | None = None) -> dict[str, Any]:
    """What verdict.json says of the trajectory in `config.evaluate.out`.

    Its `measured` is the trajectory, with the steps that no other checkpoint beats (`pareto_steps`) and a `note` where
    the run went on; or None, then `not_measured` says why. `command` measures it (again).
    """
    command = ["python", "launch/evaluate.py", f"run_dir={config.run_dir}", "checkpoints=all"]
    if config.evaluate.out != config.run_dir:
        command.append(f"out={config.evaluate.out}")
    path = Path(config.evaluate.out) / "trajectory.json"
    record, reason = _read(path)
    if record is not None:
        differences = dict(_differences(record, config, judgement))
        if log is not None and record["run_began"] not in (None, log.began):
            reason = f"'{path}' is of another run than the one in '{config.run_dir}'"
        elif differences:
            reason = f"'{path}' was measured with other {', '.join(differences)}"
            command += [word for words in differences.values() for word in words]
    if record is None or reason is not None:
        return {"measured": None, "not_measured": reason, "command": shlex.join(command)}
    measured = {
        "sentence": record["sentence"],
        "run_dir": record["run_dir"],
        "first_regressed": record["first_regressed"],
        "visits": record["visits"],
        "unbeaten": pareto_steps(record["visits"]),
        "note": _later_checkpoints(record, log),
    }
    return {"measured": measured, "not_measured": None, "command": shlex.join(command)}


def pareto_steps(visits: Sequence[Mapping[str, Any]]) -> list[int]:
    """Steps of the visits than which no other gains as much and forgets as little, and one of the two strictly better.

    By the measured values, whatever their intervals; visits without both are left out.
    """
    points = [
        (v["gain"]["value"], -v["forgetting"]["value"], v["step"]) for v in visits if v["gain"] and v["forgetting"]
    ]
    return [
        step
        for gain, kept, step in points
        if not any(g >= gain and k >= kept and (g, k) != (gain, kept) for g, k, _ in points)
    ]


def _read(path: Path) -> tuple[dict[str, Any] | None, str | None]:
    """The record, or why there is none."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None, "the checkpoints of the run have not been measured"
    except ValueError as error:
        return None, f"'{path}' is no JSON ({error})"
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        return None, f"'{path}' is no trajectory of this version ({FORMAT})"
    return record, None


def _differences(record: Mapping[str, Any], config: CptConfig, judgement: Judgement) -> Iterator[tuple[str, list[str]]]:
    """What the trajectory was measured with other than the verdict, and the words that set it as the verdict has it."""
    if record["base_files"] != model_fingerprint(judgement.models["base"]):
        yield "base model", [f"model.path={judgement.models['base']}"]
    here = asdict(judgement.settings)
    words = [f"{key}={here[name]}" for name, key in _KEYS.items() if here[name] != record["settings"][name]]
    if words:
        yield "settings", words
    thresholds = {
        answer.claim.name: answer.claim.threshold
        for answer in judgement.verdict.answers
        if answer.claim.unit == UNIT and answer.claim.kind != CONTROL
    }
    if record["thresholds"] != thresholds:
        declared = config.verdict
        words = [f"verdict.least_gain={declared.least_gain:g}", f"verdict.most_loss={declared.most_loss:g}"]
        own = ",".join(f"{name}:{margin:g}" for name, margin in declared.margins.items() if name in thresholds)
        yield "sources or margins", [*words, *([f"verdict.margins={{{own}}}"] if own else [])]


def _later_checkpoints(record: Mapping[str, Any], log: RunLog | None) -> str | None:
    later = [step for step in log.checkpoints if step > record["checkpoints"][-1]] if log else []
    if not later:
        return None
    return f"The run has made checkpoints since ({', '.join(map(str, later))}) that are not in it."
