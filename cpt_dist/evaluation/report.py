"""report.json, report.md and report.html of an evaluation and, where there is one, of the run before it.

One record holds every number (docs/evaluation.md lists its fields); the Markdown and the page are templates over that
record, so the three files can't disagree. The page is one file without scripts or anything fetched. No verdict is
given: the sentence counts outcomes and says what wasn't run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from markupsafe import Markup

from cpt_dist.evaluation import plots, statistics
from cpt_dist.evaluation.evaluate import MEASURED, NOT_RUN, Evaluation, SourceResult
from cpt_dist.evaluation.run_log import RunLog
from cpt_dist.evaluation.statistics import Estimate
from cpt_dist.report_files import template_environment, write_report_files

FORMAT = "cpt_dist.report/1"
MISSING = "–"


def _optional(estimate: Estimate | None) -> dict[str, float | None] | None:
    return asdict(estimate) if estimate else None


def source_record(result: SourceResult) -> dict[str, Any]:
    """A source's result as report.json has it."""
    record: dict[str, Any] = {
        "source": result.source,
        "role": result.role,
        "status": result.status,
        "reason": result.reason,
    }
    if result.status == NOT_RUN:
        return record
    names = (
        "documents documents_held_out effective_documents bytes base_tokens adapted_tokens only_beginning "
        "changed_documents p_value outcome documents_to_decide"
    )
    record |= {name: getattr(result, name) for name in names.split()}
    for name in ("base", "adapted", "difference", "gain", "forgetting"):
        record[name] = _optional(getattr(result, name))
    return record


def build_record(evaluation: Evaluation, log: RunLog | None = None) -> dict[str, Any]:
    """The content of report.json. Losses that are no number (skipped steps) become null."""
    macro = {
        average.role: {
            "sources": average.sources,
            "not_run": average.not_run,
            "base": asdict(average.base),
            "adapted": asdict(average.adapted),
            "difference": asdict(average.difference),
            ("gain" if average.role == "domain" else "forgetting"): asdict(
                average.difference.negated() if average.role == "domain" else average.difference
            ),
        }
        for average in evaluation.macro
    }
    return {
        "format": FORMAT,
        "sentence": sentence(evaluation.sources),
        "notes": notes(evaluation, log),
        "models": {"base": evaluation.base_model, "adapted": evaluation.adapted_model},
        "same_tokenizer": evaluation.same_tokenizer,
        "settings": asdict(evaluation.settings),
        "sources": [source_record(result) for result in evaluation.sources],
        "macro": macro,
        "run": _finite(log.facts()) if log else None,
    }


def _finite(facts: dict[str, Any]) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in facts.items()
    }


def sentence(results: Sequence[SourceResult]) -> str:
    """One sentence: how many sources of each role improved, got worse or are undecided, and what was not run."""
    clauses = []
    for role, label in (("domain", "domain"), ("replay", "general (replay)")):
        measured = [result for result in results if result.role == role and result.status == MEASURED]
        if not measured:
            clauses.append(f"no {label} source was measured")
            continue
        parts = []
        for outcome in (statistics.IMPROVED, statistics.WORSE, statistics.UNDECIDED):
            names = [result.source for result in measured if result.outcome == outcome]
            if names:
                parts.append(f"{len(names)} {outcome} ({', '.join(names)})")
        clauses.append(f"of {len(measured)} {label} source{'s' * (len(measured) > 1)} {' and '.join(parts)}")
    missing = [result.source for result in results if result.status == NOT_RUN]
    if missing:
        clauses.append(f"not run: {', '.join(missing)}")
    return f"In bits per byte of held-out text, {'; '.join(clauses)}."


def notes(evaluation: Evaluation, log: RunLog | None) -> list[str]:
    """What a reader has to know before using a number, one sentence each."""
    lines = []
    for result in evaluation.sources:
        if result.status == NOT_RUN:
            lines.append(f"{result.source}: not run, since {result.reason}.")
            continue
        if result.outcome == statistics.UNDECIDED:
            lines.append(_undecided(result, statistics.least_documents(evaluation.settings.confidence)))
        if result.only_beginning:
            lines.append(
                f"{result.source}: its first held-out document exceeds evaluation.max_tokens; only its beginning was "
                "scored."
            )
        if result.changed_documents:
            lines.append(
                f"{result.source}: {result.changed_documents} of {result.documents} documents can't be read back "
                "exactly from their tokens, so their bits per byte are too low."
            )
    if not evaluation.same_tokenizer:
        lines.append(
            "The models have different tokenizers: bits per byte can be compared, losses and token counts can't."
        )
    if evaluation.base_model == evaluation.adapted_model:
        lines.append("Base and adapted model are the same folder, so no difference can be found.")
    if log and log.num_unreadable_lines:
        lines.append(f"{log.num_unreadable_lines} lines of metrics.jsonl couldn't be read and are left out.")
    return lines


def _undecided(result: SourceResult, least: int) -> str:
    used = f"{result.documents} of {result.documents_held_out} held-out documents were scored"
    more = "raise evaluation.max_tokens" if result.documents < result.documents_held_out else "hold out more documents"
    if result.effective_documents < least:
        return (
            f"{result.source}: undecided, because documents that weigh as much as {result.effective_documents:.1f} "
            f"equal ones can't decide (at least {least}); {used}; {more}."
        )
    if result.documents_to_decide is None:
        return f"{result.source}: undecided; no difference was observed; {used}."
    needed = f"about {result.documents_to_decide:,} documents like these would decide a difference of this size"
    return f"{result.source}: undecided; {needed}; {used}; {more}."


def _bits(value: float | None) -> str:
    return MISSING if value is None else f"{value:.4f}"


def _signed(value: float | None) -> str:
    return MISSING if value is None else f"{value:+.4f}"


def _interval(estimate: dict[str, float | None], signed: bool = False) -> str:
    if estimate["low"] is None:
        return "no interval"
    form = _signed if signed else _bits
    return f"[{form(estimate['low'])}, {form(estimate['high'])}]"


def _share_interval(estimate: dict[str, float]) -> str:
    return f"[{estimate['low']:.2f}, {estimate['high']:.2f}]"


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{value:.0%}"


def _count(value: float | None) -> str:
    return MISSING if value is None else f"{round(value):,}"


def _decimal(value: float | None) -> str:
    return MISSING if value is None else f"{value:.4g}"


_FILTERS: dict[str, Callable[..., str]] = {
    "bits": _bits,
    "signed": _signed,
    "interval": _interval,
    "share_interval": _share_interval,
    "percent": _percent,
    "count": _count,
    "decimal": _decimal,
}


def render(name: str, record: dict[str, Any], **others: Any) -> str:
    """The template of the report `name` (….md or ….html) over its record and what else it shows."""
    environment = template_environment("cpt_dist.evaluation", name.endswith(".html"), _FILTERS)
    return environment.get_template(f"{name}.j2").render(record, **others)


def render_markdown(record: dict[str, Any]) -> str:
    """report.md of a record of `build_record`."""
    return render("report.md", record)


def render_html(record: dict[str, Any], log: RunLog | None = None) -> str:
    """report.html of a record of `build_record`; the curves of the run come from `log`."""
    figures = [(title, Markup(svg)) for title, svg in _figures(record, log)]
    return render("report.html", record, figures=figures)


def _figures(record: dict[str, Any], log: RunLog | None) -> list[tuple[str, str]]:
    found = []
    macro = record["macro"]
    measured = [source for source in record["sources"] if source["status"] == MEASURED]
    if measured:
        found.append(("Change by source", plots.changes(measured)))
    if "domain" in macro and "replay" in macro:
        found.append(
            (
                "Domain gained, general text forgotten",
                plots.trade_off(macro["domain"]["gain"], macro["replay"]["forgetting"]),
            )
        )
    if log and log.steps:
        found.append(("Training loss", plots.loss(log)))
        found.append(("Learning rate", plots.learning_rate(log)))
    if log and len(log.evaluations) > 1:
        found.append(("Held-out text during training", plots.held_out(log)))
    if record["run"] and record["run"]["sources"]:
        found.append(("Tokens of each source, planned and realised", plots.tokens(record["run"]["sources"])))
    return found


def write_report(evaluation: Evaluation, folder: str | Path, log: RunLog | None = None) -> dict[str, Any]:
    """Write report.json, report.md and report.html into `folder` (made if needed), each whole; return the record."""
    record = build_record(evaluation, log)
    write_report_files(folder, "report", record, render_markdown(record), render_html(record, log))
    return record
