"""All checks of a run, as doctor.json and as a table."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cpt_dist.doctor import learning, running
from cpt_dist.doctor.case import Case
from cpt_dist.doctor.findings import FOUND, HEALTHY, NOT_ENOUGH, SEVERE, Finding
from cpt_dist.files import write_json

FORMAT = "cpt_dist.doctor/1"
_STYLES = {FOUND: "red", HEALTHY: "green", NOT_ENOUGH: "yellow"}


def examine(case: Case) -> list[Finding]:
    """Every check of the case: severe troubles first, then other ones, then what is healthy or can't be told."""
    found = [check(case) for check in (*learning.CHECKS, *running.CHECKS)]
    order = {FOUND: 1, HEALTHY: 2, NOT_ENOUGH: 3}
    return sorted(found, key=lambda one: 0 if one.severity == SEVERE else order[one.status])


def sentence(findings: list[Finding]) -> str:
    """What was found, in one sentence."""
    troubles = [one.trouble for one in findings if one.status == FOUND]
    unknown = [one.trouble for one in findings if one.status == NOT_ENOUGH]
    rest = f" Not enough data for: {', '.join(unknown)}." if unknown else ""
    if troubles:
        return f"Found: {', '.join(troubles)}.{rest}"
    if len(unknown) == len(findings):
        return "There is not enough data to say anything."
    return f"Healthy, as far as {len(findings) - len(unknown)} of {len(findings)} checks can tell.{rest}"


def build_record(case: Case, findings: list[Finding]) -> dict[str, Any]:
    """The content of doctor.json."""
    return {
        "format": FORMAT,
        "sentence": sentence(findings),
        "run_dir": str(case.path),
        "step": case.last_step,
        "num_steps": case.num_steps,
        "time": case.now,
        "findings": [asdict(one) for one in findings],
    }


def write_record(record: dict[str, Any], path: str | Path) -> None:
    """Write doctor.json whole; its folder is made if needed."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record)


def print_record(record: dict[str, Any], console: Console) -> None:
    """Print the findings and what to change."""
    table = Table(title=Text(f"{record['run_dir']} at step {record['step']:,}"), title_justify="left", show_lines=True)
    for column in ("trouble", "status", "evidence", "what to change"):
        table.add_column(column, overflow="fold")
    for one in record["findings"]:
        changes = [f"{c['key']}: {c['now']} -> {c['to']} ({c['why']})" for c in one["changes"]]
        status = f"{one['status']} ({one['severity']})" if one["severity"] else one["status"]
        todo = "\n".join([*changes, *one["advice"]])
        styled = Text(status, style=_STYLES[one["status"]])
        table.add_row(one["trouble"], styled, Text("\n".join(one["evidence"])), Text(todo))
    console.print(table)
    console.print(Text(record["sentence"]), soft_wrap=True)
