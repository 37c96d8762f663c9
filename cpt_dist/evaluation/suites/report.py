"""suites.json, suites.md and suites.html: what `run.evaluate_suites` found.

One record holds every number (docs/suites.md lists its fields); Markdown and page are templates over it, as in
`evaluation.report`. Suites that lost something are named first, and a mean is never shown without them.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cpt_dist.evaluation import plots
from cpt_dist.evaluation.report import render
from cpt_dist.evaluation.statistics import least_documents
from cpt_dist.evaluation.suites.compare import (
    IMPROVED,
    KEPT,
    NOT_RUN,
    UNDECIDED,
    WORSE,
    SuiteResult,
    by_capability,
)
from cpt_dist.evaluation.suites.probes import ProbeResult
from cpt_dist.evaluation.suites.run import Searched, SuitesEvaluation
from cpt_dist.report_files import write_report_files

FORMAT = "cpt_dist.suites/1"
_STYLES = {IMPROVED: "green", KEPT: "green", WORSE: "red", UNDECIDED: "yellow", NOT_RUN: "yellow"}


def build_record(evaluation: SuitesEvaluation) -> dict[str, Any]:
    """The content of suites.json."""
    return {
        "format": FORMAT,
        "sentence": sentence(evaluation),
        "notes": notes(evaluation),
        "models": {"base": evaluation.base_model, "adapted": evaluation.adapted_model},
        "settings": asdict(evaluation.judge) | evaluation.settings,
        "suites": [_suite_record(result) for result in evaluation.suites],
        "capabilities": [asdict(one) for one in by_capability(evaluation.suites)],
        "probes": [asdict(result) for result in evaluation.probes],
        "continuations": [
            {"prompt": prompt, "base": asdict(base), "adapted": asdict(adapted)}
            for prompt, base, adapted in evaluation.continuations
        ],
        "contamination": contamination_record(evaluation.searched),
    }


def contamination_record(searched: Searched | None) -> dict[str, Any] | None:
    """What was searched for the items and which were found where; None where nothing was asked to be searched."""
    if searched is None:
        return None
    return {
        "sources": searched.sources,
        "missing": searched.missing,
        "documents": searched.documents,
        "tokens": searched.tokens,
        "found": [{"suite": suite, "item": item, **asdict(where)} for suite, item, where in searched.evidence],
    }


def _suite_record(result: SuiteResult) -> dict[str, Any]:
    record: dict[str, Any] = {
        "suite": result.suite,
        "capability": result.capability,
        "metric": result.metric,
        "status": NOT_RUN if result.comparison is None else "measured",
        "reason": result.not_run,
        "outcome": result.outcome,
    }
    if result.comparison is None:
        return record
    bits = result.answer_bits
    return record | {
        **asdict(result.comparison),
        "answer_bits_per_byte": None if bits is None else {"base": bits[0], "adapted": bits[1]},
        "contaminated": result.contaminated,
        "unchecked": result.unchecked,
        "clean": None if result.clean is None else asdict(result.clean),
    }


def sentence(evaluation: SuitesEvaluation) -> str:
    """One sentence: the suites of each outcome by name, those that lost first, and what was not run."""
    clauses = []
    run = [result for result in evaluation.suites if result.comparison]
    if evaluation.suites:
        parts = []
        for outcome in (WORSE, UNDECIDED, IMPROVED, KEPT):
            names = [result.suite for result in run if result.outcome == outcome]
            if names:
                parts.append(f"{len(names)} {outcome} ({', '.join(names)})")
        if run:
            clauses.append(f"of {len(run)} suite{'s' * (len(run) > 1)} {' and '.join(parts)}")
        missing = [result.suite for result in evaluation.suites if not result.comparison]
        if missing:
            clauses.append(f"not run: {', '.join(missing)}")
    clauses += [f"facts of {Path(result.file).name}: {result.outcome}" for result in evaluation.probes]
    if evaluation.continuations:
        clauses.append(f"{len(evaluation.continuations)} prompts continued by both models")
    text = "; ".join(clauses)
    return f"{text[:1].upper()}{text[1:]}."


def notes(evaluation: SuitesEvaluation) -> list[str]:
    """What a reader has to know before using a number, one sentence each."""
    lines = []
    for result in evaluation.suites:
        if result.comparison is None:
            lines.append(f"{result.suite}: not run, since {result.not_run}.")
            continue
        if result.outcome == UNDECIDED:
            lines.append(_undecided(result, evaluation.judge.confidence))
        base = result.comparison.base
        if result.comparison.retention is None and (base.low is None or base.low <= result.comparison.chance):
            lines.append(
                f"{result.suite}: the base model isn't above chance ({result.comparison.chance:.3f}) for certain, so "
                "there is nothing of which a share could be kept."
            )
        if result.contaminated:
            changed = f"; without them it is {result.clean.outcome}" if result.clean else "; none is left without them"
            lines.append(
                f"{result.suite}: {result.contaminated} of {result.comparison.items} items occur in the training "
                f"data{changed}."
            )
        if result.unchecked:
            lines.append(unchecked_note(result.suite, result.unchecked))
    lines += [_probe_note(result, evaluation.judge.confidence) for result in evaluation.probes]
    if evaluation.searched is not None:
        lines += search_notes(evaluation.searched)
    if evaluation.base_model == evaluation.adapted_model:
        lines.append("Base and adapted model are the same folder, so no difference can be found.")
    return [line for line in lines if line]


def unchecked_note(suite: str, items: int) -> str:
    """That so many items can't be searched for."""
    return (
        f"{suite}: {items} items are too short, or have nothing beyond the task's wording, to be searched for in the "
        "training data."
    )


def search_notes(searched: Searched) -> list[str]:
    """What was not searched for the items."""
    if not searched.sources:
        return ["No training shards were searched for the items: data.sources has none that are complete here."]
    if searched.missing:
        return [f"Not searched for the items: {', '.join(searched.missing)} (no complete shards here)."]
    return []


def _undecided(result: SuiteResult, confidence: float) -> str:
    found = result.comparison
    assert found is not None
    line = f"{result.suite}: undecided with {found.items} items"
    if found.detectable is not None:
        line += f", which show a change of {found.detectable:.3f} or more"
    if found.items_to_decide is not None and found.items_to_decide > found.items:
        line += f"; about {found.items_to_decide:,} such items would decide, were the true change the observed one"
    if found.items < least_documents(confidence):
        line += f"; fewer than {least_documents(confidence)} items can't decide anything"
    return f"{line}."


def _probe_note(result: ProbeResult, confidence: float) -> str:
    if result.control is None:
        return f"{result.file}: it has no control facts, so a better form of answer counts as knowledge."
    if result.outcome == UNDECIDED and (result.learned is None or result.learned.low is None):
        return f"{result.file}: undecided; it takes at least {least_documents(confidence)} facts of each kind."
    return ""


def render_markdown(record: dict[str, Any]) -> str:
    """suites.md of a record of `build_record`."""
    return render("suites.md", record)


def render_html(record: dict[str, Any]) -> str:
    """suites.html of a record of `build_record`: one file without scripts or anything fetched."""
    measured = [suite for suite in record["suites"] if suite["status"] == "measured"]
    figure = Markup(plots.suite_gains(measured)) if measured else None
    return render("suites.html", record, figure=figure)


def write_suites_report(evaluation: SuitesEvaluation, folder: str | Path) -> dict[str, Any]:
    """Write suites.json, suites.md and suites.html into `folder` (made if needed), each whole; return the record."""
    record = build_record(evaluation)
    write_report_files(folder, "suites", record, render_markdown(record), render_html(record))
    return record


def print_suites(record: dict[str, Any], console: Console) -> None:
    """Print the suites of a record as a table, and its sentence and notes."""
    if record["suites"]:
        level = f"{record['settings']['confidence'] * 100:g}%"
        table = Table(title="Suites (gain: positive is better)")
        for column in ("suite", "capability", "metric"):
            table.add_column(column)
        for column in ("before", "after", "gain", f"{level} interval", "kept of base"):
            table.add_column(column, justify="right")
        table.add_column("outcome")
        table.add_column("items", justify="right")
        for suite in record["suites"]:
            table.add_row(*_cells(suite))
        console.print(table)
    for probe in record["probes"]:
        shown = probe["learned"] or probe["trained"]
        interval = "no interval" if shown["low"] is None else f"{shown['low']:+.3f} to {shown['high']:+.3f}"
        console.print(Text(f"{probe['file']}: {probe['outcome']} ({shown['value']:+.3f} bits per byte, {interval})"))
    console.print(Text(record["sentence"]))
    for note in record["notes"]:
        console.print(Text(f"- {note}"))


def _cells(suite: dict[str, Any]) -> list[Text]:
    head = [Text(suite["suite"]), Text(suite["capability"]), Text(suite["metric"])]
    outcome = Text(suite["outcome"], style=_STYLES[suite["outcome"]])
    if suite["status"] == NOT_RUN:
        return [*head, *(Text("") for _ in range(5)), outcome, Text("")]
    gain, kept = suite["gain"], suite["retention"]
    interval = "none" if gain["low"] is None else f"{gain['low']:+.3f} to {gain['high']:+.3f}"
    numbers = [f"{suite['base']['value']:.3f}", f"{suite['adapted']['value']:.3f}", f"{gain['value']:+.3f}", interval]
    numbers.append("–" if kept is None else f"{kept['value'] * 100:.0f}%")
    return [*head, *map(Text, numbers), outcome, Text(f"{suite['items']:,}")]
