"""trajectory.json, .md and .html: gain and forgetting of a run's checkpoints, and the first that regressed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cpt_dist.config import BISECT
from cpt_dist.evaluation import plots
from cpt_dist.evaluation.report import render
from cpt_dist.evaluation.trajectory import Trajectory, Visit
from cpt_dist.report_files import write_report_files

FORMAT = "cpt_dist.trajectory/3"


def build_record(found: Trajectory) -> dict[str, Any]:
    """The content of trajectory.json."""
    return {
        "format": FORMAT,
        "sentence": _sentence(found),
        "how": found.how,
        "run_dir": found.run_dir,
        "run_began": found.run_began,
        "base_files": found.base_files,
        "settings": asdict(found.settings),
        "thresholds": {answer.claim.name: answer.claim.threshold for answer in found.visits[0].answers},
        "checkpoints": found.steps,
        "first_regressed": found.first_regressed,
        "visits": [_visit_record(visit) for visit in found.visits],
    }


def _sentence(found: Trajectory) -> str:
    looked = f"{len(found.visits)} of {len(found.steps)} checkpoints measured"
    if found.first_regressed is None:
        return f"No regression is shown ({looked})."
    first = next(visit for visit in found.visits if visit.step == found.first_regressed)
    assumed = ", if a run that has regressed stays so" if found.how == BISECT else ""
    where = ", ".join(first.regressed)
    return f"The checkpoint of step {first.step} is the first that regressed, on {where} ({looked}{assumed})."


def _visit_record(visit: Visit) -> dict[str, Any]:
    sources = {
        answer.claim.name: {"status": answer.status, "gain": asdict(answer.gain) if answer.gain else None}
        for answer in visit.answers
    }
    return {
        "step": visit.step,
        "gain": asdict(visit.point.gain) if visit.point.gain else None,
        "forgetting": asdict(visit.point.forgetting) if visit.point.forgetting else None,
        "regressed": visit.regressed,
        "sources": sources,
    }


def write_trajectory(found: Trajectory, folder: str | Path) -> dict[str, Any]:
    """Write the three files into `folder` (made if needed), each whole; return the record."""
    record = build_record(found)
    points = points_of(record["visits"])
    figures = [("Gained and forgotten", Markup(plots.pareto(points)))] if points else []
    pages = (render(f"trajectory.{kind}", record, figures=figures) for kind in ("md", "html"))
    write_report_files(folder, "trajectory", record, *pages)
    return record


def points_of(visits: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The visits that have a place in the picture of gain against forgetting, named for it."""
    whole = [visit for visit in visits if visit["gain"] and visit["forgetting"]]
    return [visit | {"name": f"step {visit['step']}"} for visit in whole]


def print_trajectory(record: dict[str, Any], console: Console) -> None:
    """A line for each checkpoint on a terminal."""
    table = Table(title="Checkpoints against the base (bits per byte)")
    for column in ("step", "gained on domain", "forgotten on replay"):
        table.add_column(column, justify="right")
    table.add_column("regressed")
    for visit in record["visits"]:
        values = [f"{visit[name]['value']:+.4f}" if visit[name] else "" for name in ("gain", "forgetting")]
        table.add_row(str(visit["step"]), *values, Text(", ".join(visit["regressed"]), style="red"))
    console.print(table)
    console.print(Text(record["sentence"]))
