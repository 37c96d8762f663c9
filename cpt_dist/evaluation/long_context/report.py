"""long_context.json, long_context.md and long_context.html.

As with the report of held-out text, one record holds every number and the other two files are templates over it. No
verdict is given: the sentences say where each model stops making use of context, and what wasn't run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cpt_dist.evaluation import plots, statistics
from cpt_dist.evaluation.evaluate import MEASURED
from cpt_dist.evaluation.long_context.measure import MODELS, LongContextEvaluation
from cpt_dist.evaluation.long_context.positions import Curve
from cpt_dist.evaluation.long_context.suite import EFFECTIVE_SHARE, TaskResult
from cpt_dist.evaluation.report import render, source_record
from cpt_dist.report_files import write_report_files

FORMAT = "cpt_dist.long_context/1"


def build_record(evaluation: LongContextEvaluation) -> dict[str, Any]:
    """The content of long_context.json (docs/evaluation.md lists its fields)."""
    curves = {"base": evaluation.base_curve, "adapted": evaluation.adapted_curve}
    return {
        "format": FORMAT,
        "sentences": sentences(evaluation),
        "notes": notes(evaluation),
        "models": {"base": evaluation.base_model, "adapted": evaluation.adapted_model},
        "same_tokenizer": evaluation.same_tokenizer,
        "settings": asdict(evaluation.settings),
        "lengths": asdict(evaluation.lengths),
        "items": evaluation.num_items,
        "haystack": evaluation.haystack,
        "effective_share": EFFECTIVE_SHARE,
        "short": [source_record(result) for result in evaluation.short],
        "positions": {
            "documents": list(evaluation.documents),
            "not_run": evaluation.positions_not_run,
            "curves": {name: asdict(curve) if curve else None for name, curve in curves.items()},
            "changes": [asdict(change) for change in evaluation.changes],
        },
        "tasks": [asdict(result) for result in evaluation.tasks],
        "effective_lengths": evaluation.effective_lengths,
    }


def _by_position(name: str, curve: Curve | None) -> str:
    if curve is None:
        return f"loss by position of the {name} model was not run"
    falls = f"falls for sure up to {curve.falls_until:,} tokens" if curve.falls_until else "nowhere falls for sure"
    rises = f"rises for sure from {curve.rises_from:,} on" if curve.rises_from is not None else "nowhere rises for sure"
    return f"the loss of the {name} model {falls} and {rises}"


def sentences(evaluation: LongContextEvaluation) -> list[str]:
    """What was found, one sentence a measurement."""
    positions = "; ".join(
        _by_position(name, curve)
        for name, curve in zip(MODELS, (evaluation.base_curve, evaluation.adapted_curve), strict=True)
    )
    found = [positions[0].upper() + positions[1:] + "."]
    measured = [result for result in evaluation.short if result.status == MEASURED]
    counts = []
    for outcome in (statistics.IMPROVED, statistics.WORSE, statistics.UNDECIDED):
        names = [result.source for result in measured if result.outcome == outcome]
        if names:
            counts.append(f"{len(names)} {outcome} ({', '.join(names)})")
    short = f"In windows of {evaluation.lengths.short:,} tokens, bits per byte"
    found.append(f"{short}: {', '.join(counts)}." if counts else f"{short} were not measured.")
    for way in dict.fromkeys(result.way for result in evaluation.tasks):
        rows = [result for result in evaluation.tasks if result.way == way and result.outcome]
        pairs = [
            f"{sum(row.outcome == outcome for row in rows)} {outcome}"
            for outcome in (statistics.IMPROVED, statistics.WORSE, statistics.UNDECIDED)
        ]
        found.append(f"Of {len(rows)} tasks and lengths with {way} answers: {', '.join(pairs)}.")
    return found


def notes(evaluation: LongContextEvaluation) -> list[str]:
    """What a reader has to know before using a number, one sentence each."""
    lines = []
    if evaluation.base_model == evaluation.adapted_model:
        lines.append("Base and adapted model are the same folder: one model was measured, and no difference exists.")
    if evaluation.positions_not_run:
        lines.append(f"Loss by position: not run, since {evaluation.positions_not_run}.")
    if not evaluation.same_tokenizer:
        lines.append(
            "The models have different tokenizers: their losses by position can't be compared, and prompts of one "
            "length hold different amounts of text."
        )
    for result in evaluation.short:
        if result.status != MEASURED:
            lines.append(f"{result.source}: not run, since {result.reason}.")
    missing: dict[str, list[TaskResult]] = {}
    for task in evaluation.tasks:
        if task.not_run and task.way == evaluation.tasks[0].way:
            missing.setdefault(task.task, []).append(task)
    for name, rows in missing.items():
        lengths = ", ".join(f"{row.length:,}" for row in rows)
        lines.append(f"{name}: not run at {lengths} tokens, since {rows[0].not_run}.")
    least = statistics.least_documents(evaluation.settings.confidence)
    if evaluation.tasks and evaluation.num_items < least:
        lines.append(f"{evaluation.num_items} items of a task can't decide anything; at least {least} are needed.")
    native = evaluation.lengths.native
    there = {result.task for result in evaluation.tasks if result.length == native and not result.not_run}
    for way in dict.fromkeys(result.way for result in evaluation.tasks):
        for name in MODELS:
            blind = [
                task
                for task, found in evaluation.effective_lengths.items()
                if task in there and found[way][name] is None
            ]
            if blind:
                lines.append(
                    f"The {name} model, {way}: no effective length for {', '.join(blind)}, since it isn't above chance "
                    "there at its native length; it had nothing to lose."
                )
    return lines


def render_markdown(record: dict[str, Any]) -> str:
    """long_context.md of a record of `build_record`."""
    return render("long_context.md", record)


def render_html(record: dict[str, Any]) -> str:
    """long_context.html of a record of `build_record`."""
    figures = [(title, Markup(svg)) for title, svg in _figures(record)]
    return render("long_context.html", record, figures=figures)


def _figures(record: dict[str, Any]) -> list[tuple[str, str]]:
    found = []
    alone = record["models"]["base"] == record["models"]["adapted"]
    names = MODELS[:1] if alone else MODELS
    curves = {name: record["positions"]["curves"][name] for name in names}
    drawn = {name: curve["buckets"] for name, curve in curves.items() if curve}
    if drawn:
        found.append(("Loss by position", plots.loss_by_position(drawn)))
    for way in dict.fromkeys(row["way"] for row in record["tasks"]):
        rows = [row for row in record["tasks"] if row["way"] == way]
        for name in names:
            found.append((f"Tasks, {way} answers, {name} model", plots.task_scores(rows, name)))
    return found


def write_report(evaluation: LongContextEvaluation, folder: str | Path) -> dict[str, Any]:
    """Write the three files into `folder` (made if needed), each whole; return the record."""
    record = build_record(evaluation)
    write_report_files(folder, "long_context", record, render_markdown(record), render_html(record))
    return record


def print_tables(record: dict[str, Any], console: Console) -> None:
    """Print loss by position and task scores of a record, and its sentences."""
    curves = record["positions"]["curves"]
    if curves["base"] and curves["adapted"]:
        table = Table(title="Nats per token by position")
        for column in ("tokens before", "base", "adapted", "documents"):
            table.add_column(column, justify="right")
        for base, adapted in zip(curves["base"]["buckets"], curves["adapted"]["buckets"], strict=False):
            values = [f"{one['loss']['value']:.4f}" for one in (base, adapted)]
            table.add_row(f"{base['start']:,} to {base['stop'] - 1:,}", *values, f"{base['documents']:,}")
        console.print(table)
    for way in dict.fromkeys(row["way"] for row in record["tasks"]):
        console.print(_task_table([row for row in record["tasks"] if row["way"] == way]))
    for line in (*record["sentences"], *(f"- {note}" for note in record["notes"])):
        console.print(Text(line))


def _task_table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(title=f"Tasks, {rows[0]['way']} answers (chance {rows[0]['chance']:g})")
    table.add_column("task")
    for column in ("tokens", "base", "adapted"):
        table.add_column(column, justify="right")
    table.add_column("outcome")
    for row in rows:
        if row["not_run"]:
            table.add_row(row["task"], f"{row['length']:,}", "not run", "not run", "")
            continue
        values = [f"{row[name]['value']:.2f} [{row[name]['low']:.2f}, {row[name]['high']:.2f}]" for name in MODELS]
        table.add_row(row["task"], f"{row['length']:,}", *values, row["outcome"])
    return table
