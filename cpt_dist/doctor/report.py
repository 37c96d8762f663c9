"""All checks of a run, as doctor.json, doctor.md, doctor.html and as a table."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cpt_dist.doctor import learning, running
from cpt_dist.doctor.case import Case
from cpt_dist.doctor.findings import FOUND, HEALTHY, NOT_ENOUGH, SEVERE, Finding
from cpt_dist.evaluation.run_log import RunLog
from cpt_dist.files import atomic_write, write_json
from cpt_dist.report_files import template_environment

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


def _count(value: float | None) -> str:
    return "?" if value is None else f"{value:,}"


def _fact(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _figures(log: RunLog) -> list[tuple[str, Markup]]:
    """What the run's records are whole enough for."""
    from cpt_dist.evaluation import plots

    steps = [one for one in log.steps if isinstance(one.get("loss"), float) and isinstance(one.get("lr"), float)]
    whole = replace(log, steps=steps)
    found = []
    if steps:
        found = [("Training loss", plots.loss(whole)), ("Learning rate", plots.learning_rate(whole))]
    if len(log.evaluations) > 1:
        found.append(("Held-out text during training", plots.held_out(whole)))
    return [(title, Markup(svg)) for title, svg in found]


def render(record: dict[str, Any], name: str, log: RunLog) -> str:
    """doctor.md or doctor.html of a record of `build_record`; the page shows the curves of `log`."""
    page = name.endswith(".html")
    environment = template_environment("cpt_dist.doctor", page, {"count": _count, "fact": _fact})
    return environment.get_template(f"{name}.j2").render(record, figures=_figures(log) if page else [])


def write_record(record: dict[str, Any], path: str | Path, log: RunLog) -> None:
    """Write the record to `path`, and beside it the same in Markdown and as a page; its folder is made if needed."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_json(target, record)
    for kind in ("md", "html"):
        with atomic_write(target.with_suffix(f".{kind}"), "w") as handle:
            handle.write(render(record, f"doctor.{kind}", log))


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
