"""verdict.json, verdict.md and verdict.html: one record, and two templates over it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cpt_dist.evaluation import plots
from cpt_dist.evaluation.claims import CONTROL, DID_NOT_HELP, GOAL, HELPED, NOT_RUN, RETENTION, Answer
from cpt_dist.evaluation.report import render
from cpt_dist.evaluation.run_log import RunLog
from cpt_dist.evaluation.suites.report import contamination_record
from cpt_dist.evaluation.trajectory_report import points_of
from cpt_dist.evaluation.verdict import Judgement
from cpt_dist.evaluation.verdict_leaks import leak_notes, leaked_records, only_leaked
from cpt_dist.report_files import write_report_files

FORMAT = "cpt_dist.verdict/1"
_KINDS = {GOAL: "gains more than", RETENTION: "loses less than", CONTROL: "beats the control arm by"}
_STYLES = {"shown": "green", "refuted": "red", "undecided": "yellow", NOT_RUN: "yellow"}


def build_record(
    judgement: Judgement, log: RunLog | None = None, trajectory: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The content of verdict.json; `trajectory` is made by `verdict_trajectory.trajectory_part`."""
    found, with_leaked = judgement.verdict.answers, judgement.with_leaked
    leaked = leaked_records(found, with_leaked)
    claims = [_claim_record(answer) | {"leaked": one} for answer, one in zip(found, leaked, strict=True)]
    return {
        "format": FORMAT,
        "verdict": judgement.verdict.word,
        "sentence": _sentence(judgement),
        "reasons": judgement.verdict.reasons + only_leaked(claims),
        "notes": _notes(judgement) + leak_notes(claims, with_leaked) + _trajectory_notes(trajectory),
        "models": judgement.models,
        "same_tokenizer": judgement.same_tokenizer,
        "settings": asdict(judgement.settings),
        "claims": claims,
        "contamination": contamination_record(with_leaked.searched) if with_leaked else None,
        "points": [asdict(one) for one in judgement.points if one.gain and one.forgetting],
        "trajectory": trajectory,
        "cost": _cost(log),
    }


def _claim_record(answer: Answer) -> dict[str, Any]:
    claim = answer.claim
    bound = -claim.threshold if claim.kind == RETENTION else claim.threshold
    return {
        "claim": f"{claim.name} {_KINDS[claim.kind]} {bound:g} {claim.unit}",
        "name": claim.name,
        "kind": claim.kind,
        "threshold": claim.threshold,
        "unit": claim.unit,
        "status": answer.status,
        "not_run": claim.not_run,
        "gain": asdict(answer.gain) if answer.gain else None,
        "p_above": answer.p_above,
        "p_below": answer.p_below,
        "items": answer.items,
        "detectable": answer.detectable,
        "items_needed": answer.items_needed,
    }


def _sentence(judgement: Judgement) -> str:
    found = judgement.verdict.answers
    shown = sum(answer.status == "shown" for answer in found)
    if judgement.verdict.word == HELPED:
        return f"Continued pretraining helped: all {len(found)} claims are shown."
    refuted = [answer.claim.name for answer in found if answer.status == "refuted"]
    if judgement.verdict.word == DID_NOT_HELP:
        return (
            f"Continued pretraining did not help: {', '.join(refuted)} refuted; {shown} of {len(found)} claims shown."
        )
    needs = [answer for answer in found if answer.items_needed is not None]
    most = max(needs, key=lambda answer: answer.items_needed or 0, default=None)
    needed = f" (needs n = {most.items_needed:,} for {most.claim.name})" if most else ""
    return f"Undecided{needed}: {shown} of {len(found)} claims are shown, none is refuted."


def _notes(judgement: Judgement) -> list[str]:
    lines = []
    if "control" not in judgement.models:
        lines.append(
            "There is no control arm: the decay of the learning rate alone may have moved these numbers. Train one, by "
            "the command of this run with control_arm=true and another run_dir, and give it as control=FOLDER."
        )
    if not judgement.same_tokenizer:
        lines.append("The models have different tokenizers: bits per byte can be compared, token losses can't.")
    lines += [
        f"{name}: the base model isn't above chance for certain, so there was little to lose, and that it is kept says "
        "as little."
        for name in judgement.nothing_to_lose
    ]
    if judgement.models["base"] == judgement.models["adapted"]:
        lines.append("Base and adapted model are the same folder.")
    return lines


def _trajectory_notes(trajectory: dict[str, Any] | None) -> list[str]:
    if trajectory is None:
        return []
    if trajectory["measured"] is None:
        return [f"No trajectory: {trajectory['not_measured']}. Measure it: {trajectory['command']}"]
    note = trajectory["measured"]["note"]
    return [f"Checkpoints: {trajectory['measured']['sentence']}", *([note] if note else [])]


def _cost(log: RunLog | None) -> dict[str, Any] | None:
    if log is None:
        return None
    facts = log.facts()
    speed = facts["tokens_per_second"]
    hours = facts["tokens"] / speed / 3600 if speed and facts["tokens"] else None
    return {"tokens": facts["tokens"], "steps": facts["steps"], "hours": hours}


def write_verdict(
    judgement: Judgement,
    folder: str | Path,
    log: RunLog | None = None,
    trajectory: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the three files into `folder` (made if needed), each whole; return the record (`build_record`)."""
    record = build_record(judgement, log, trajectory)
    pictures = {"Gained and forgotten": record["points"]}
    if trajectory and trajectory["measured"]:
        pictures["Gained and forgotten over the checkpoints"] = points_of(trajectory["measured"]["visits"])
    figures = [(title, Markup(plots.pareto(points))) for title, points in pictures.items() if points]
    pages = (render(f"verdict.{kind}", record, figures=figures) for kind in ("md", "html"))
    write_report_files(folder, "verdict", record, *pages)
    return record


def print_verdict(record: dict[str, Any], console: Console) -> None:
    """The verdict, its claims and reasons on a terminal."""
    table = Table(title=f"Verdict: {record['verdict']}")
    for column in ("claim", "answer"):
        table.add_column(column)
    for column in ("gain", "interval", "items", "n needed"):
        table.add_column(column, justify="right")
    for claim in record["claims"]:
        gain = claim["gain"]
        interval = f"{gain['low']:+.4f} to {gain['high']:+.4f}" if gain and gain["low"] is not None else "none"
        table.add_row(
            Text(claim["claim"]),
            Text(claim["status"], style=_STYLES[claim["status"]]),
            f"{gain['value']:+.4f}" if gain else "",
            interval if gain else "",
            f"{claim['items']:,}" if gain else "",
            f"{claim['items_needed']:,}" if claim["items_needed"] else "",
        )
    console.print(table)
    console.print(Text(record["sentence"]))
    for line in (*record["reasons"], *record["notes"]):
        console.print(Text(f"- {line}"))
