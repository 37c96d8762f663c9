"""The report of the medical study: Markdown, JSON and a figure, made of what the programs wrote.

Every number and every outcome is read from verdict.json, suites.json, report.json and probe.json. The text around them
describes what was done; it says nothing about the result that isn't computed here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpt_dist.evaluation import plots
from cpt_dist.evaluation.run_log import RunLog
from cpt_dist.files import atomic_write, write_json

if TYPE_CHECKING:
    from studies.medical import Study

CLAIM_KEYS = ("claim", "kind", "status", "gain", "p_above", "p_below", "items", "detectable", "items_needed", "not_run")


def read(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def build_record(study: Study) -> dict[str, Any]:
    """The content of medical.json."""
    from studies.medical import ARMS, CONTROL, MAIN

    arms = []
    points = []
    for arm, replay in ARMS.items():
        log = RunLog.read(study.out / arm / "metrics.jsonl")
        record: dict[str, Any] = {"arm": arm, "replay": replay, "training": _training(log)}
        if arm != CONTROL:
            verdict, suites = (read(study.out / arm / f"{name}.json") for name in ("verdict", "suites"))
            record |= {key: verdict[key] for key in ("verdict", "sentence", "reasons", "notes")}
            record["claims"] = [{key: claim[key] for key in CLAIM_KEYS} for claim in verdict["claims"]]
            record["sources"] = _sources(read(study.out / arm / "report.json"))
            record["suites"] = [_suite(suite) for suite in suites["suites"]]
            points += _points(arm, verdict["points"], with_others=arm == MAIN)
        arms.append(record)
    base = RunLog.read(study.out / "base" / "metrics.jsonl")
    probe = read(study.out / "probe" / "probe.json")
    return {
        "format": "cpt_dist.study/1",
        "study": "medical",
        "size": vars(study.size),
        "processes": study.processes,
        "base": _training(base),
        "main": MAIN,
        "arms": arms,
        "probe": {key: probe[key] for key in probe if key not in ("scores", "found", "contamination")},
        "points": points,
        "steps": [{"step": name, "seconds": round(seconds, 1)} for name, seconds in study.steps.seconds.items()],
        "commands": study.steps.commands,
    }


def _training(log: RunLog | None) -> dict[str, Any]:
    facts = log.facts() if log else {}
    names = ("parameters", "steps", "tokens", "tokens_per_second", "first_loss", "last_loss")
    return {name: facts.get(name) for name in names}


def _sources(report: dict[str, Any]) -> list[dict[str, Any]]:
    keys = ("source", "role", "status", "documents", "base", "adapted", "difference", "outcome")
    return [{key: source.get(key) for key in keys} for source in report["sources"]]


def _suite(suite: dict[str, Any]) -> dict[str, Any]:
    keys = (
        "suite",
        "status",
        "metric",
        "items",
        "chance",
        "base",
        "adapted",
        "gain",
        "outcome",
        "contaminated",
        "clean",
    )
    return {key: suite.get(key) for key in (*keys, "answer_bits_per_byte")}


def _points(arm: str, points: list[dict[str, Any]], with_others: bool) -> list[dict[str, Any]]:
    """The points of an arm's verdict under names that tell the arms apart."""
    named = [point | {"name": arm} for point in points if point["name"] == "adapted"]
    if with_others:
        named += [point for point in points if point["name"] in ("base", "control")]
        named += [
            point | {"name": f"{arm}, {point['name']}"} for point in points if point["name"].startswith("average")
        ]
    return named


def _estimate(estimate: dict[str, float | None] | None, signed: bool = True) -> str:
    if estimate is None:
        return "–"
    form = "{:+.4f}" if signed else "{:.4f}"
    value = form.format(estimate["value"])
    if estimate["low"] is None:
        return value
    return f"{value} [{form.format(estimate['low'])}, {form.format(estimate['high'])}]"


def _row(*cells: Any) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _table(*heads: str) -> list[str]:
    return [_row(*heads), "|" + "---|" * len(heads)]


def render(record: dict[str, Any]) -> str:
    """medical.md of a record."""
    judged = [arm for arm in record["arms"] if "verdict" in arm]
    size = record["size"]
    lines = [
        "# Study: the Gene Ontology, with and without replay",
        "",
        "Written by `python -m studies.medical` from what it measured. How it is made: [README](README.md).",
        "",
        "| arm | replay | verdict |",
        "|---|---|---|",
        *(_row(arm["arm"], f"{arm['replay']:.0%}", f"**{arm['verdict']}**. {arm['sentence']}") for arm in judged),
        "",
        f"The base has {record['base']['parameters']:,} parameters and read {record['base']['tokens']:,} tokens of "
        f"general text; each arm read {record['arms'][0]['training']['tokens']:,} more. The claims were declared in "
        f"`configs/experiment/medical.yaml`; {record['main']} was declared the main arm. One seed of training for each "
        "arm: intervals are over documents and items, and over seeds in the probe alone.",
        "",
        "![Gain against forgetting](medical.svg)",
        "",
    ]
    for arm in judged:
        lines += [f"## {arm['arm']}: {arm['verdict']}", ""]
        lines += _table("claim", "answer", "gain", "p (above)", "p (below)", "items", "detectable", "n needed")
        for claim in arm["claims"]:
            if claim["gain"] is None:
                lines.append(_row(claim["claim"], f"not run: {claim['not_run']}", *[""] * 6))
                continue
            needed = "" if claim["items_needed"] is None else f"{claim['items_needed']:,}"
            p_values = (f"{claim[key]:.4f}" for key in ("p_above", "p_below"))
            detectable = "–" if claim["detectable"] is None else f"{claim['detectable']:.4f}"
            gain = _estimate(claim["gain"])
            lines.append(_row(claim["claim"], claim["status"], gain, *p_values, claim["items"], detectable, needed))
        lines += ["", *(f"- {line}" for line in (*arm["reasons"], *arm["notes"])), ""]
    lines += ["## Bits per byte of held-out text", ""]
    lines += _table("source", "arm", "documents", "base", "after", "change", "outcome")
    for arm in judged:
        for source in arm["sources"]:
            values = (_estimate(source[key], key == "difference") for key in ("base", "adapted", "difference"))
            lines.append(_row(source["source"], arm["arm"], source["documents"], *values, source["outcome"]))
    lines += ["", "## Suites", ""]
    heads = ("suite", "arm", "items", "chance", "base", "after", "gain", "outcome", "bits per byte of the answer")
    lines += _table(*heads, "items found in text", "gain without them")
    for arm in judged:
        for suite in arm["suites"]:
            lines.append(_suite_row(arm["arm"], suite))
    lines += ["", *_probe_lines(record["probe"]), "", "## What it cost", ""]
    lines += _table("model", "steps", "tokens", "tokens/s (median)", "first loss", "last loss")
    for name, facts in [("base", record["base"]), *((arm["arm"], arm["training"]) for arm in record["arms"])]:
        speed = "–" if facts["tokens_per_second"] is None else f"{facts['tokens_per_second']:,.0f}"
        losses = (f"{facts[key]:.4f}" for key in ("first_loss", "last_loss"))
        lines.append(_row(name, facts["steps"], f"{facts['tokens']:,}", speed, *losses))
    total = sum(step["seconds"] for step in record["steps"])
    slowest = sorted(record["steps"], key=lambda step: -step["seconds"])[:5]
    processes = max(1, record["processes"])
    lines += [
        "",
        f"{len(record['steps'])} steps took {total / 60:.1f} minutes with {processes} training processes; "
        + "most of it "
        + ", ".join(f"{step['step']} ({step['seconds']:.0f} s)" for step in slowest)
        + f". {size['items']} items a suite at most, {size['examples']} training examples in the probe.",
        "",
    ]
    return "\n".join(lines)


def _suite_row(arm: str, suite: dict[str, Any]) -> str:
    if suite["status"] != "measured":
        return _row(suite["suite"], arm, *[""] * 5, "not run", "", "", "")
    bits = suite["answer_bits_per_byte"]
    shown = "–" if bits is None else f"{bits['base']:.3f} → {bits['adapted']:.3f}"
    found = "not searched" if suite["contaminated"] is None else str(suite["contaminated"])
    clean = _estimate(suite["clean"]["gain"]) if suite["clean"] else "–"
    values = (_estimate(suite[key], key == "gain") for key in ("base", "adapted", "gain"))
    head = (suite["suite"], arm, suite["items"], f"{suite['chance']:.2f}")
    return _row(*head, *values, suite["outcome"], shown, found, clean)


def _probe_lines(probe: dict[str, Any]) -> list[str]:
    seeds = [f"seed {seed}" for seed in probe["seeds"]]
    lines = [f"## Probe: {probe['probe']}", "", probe["sentence"], ""]
    lines += _table("arm", "before fine-tuning", *seeds, "mean")
    for arm in probe["arms"]:
        scores = [f"{seed['score']['value']:.4f}" for seed in arm["seeds"]]
        lines.append(_row(arm["arm"], f"{arm['before']['value']:.4f}", *scores, f"{arm['mean']:.4f}"))
    lines += ["", *_table("adapted against", "outcome", "gain over items and seeds", "p", "variance from seeds")]
    for one in probe["comparisons"]:
        gain, shared = _estimate(one["gain"]), f"{one['seed_share_of_variance']:.0%}"
        lines.append(_row(one["against"], one["outcome"], gain, f"{one['p_value']:.4f}", shared))
    lines += ["", f"{probe['items']} items, chance {probe['chance']:.4f}, always one answer {probe['majority']:.4f}."]
    return [*lines, "", *(f"- {line}" for line in probe["notes"])]


def write_report(study: Study, folder: Path) -> dict[str, Any]:
    """Write medical.md, medical.json and medical.svg into `folder`; return the record."""
    record = build_record(study)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "medical.json", record)
    figure = plots.pareto(record["points"]).replace("currentColor", "#777777")
    for name, text in (("medical.md", render(record)), ("medical.svg", figure)):
        with atomic_write(folder / name, "w") as handle:
            handle.write(text)
    return record
