"""probe.json, probe.md and probe.html: one record, and two templates over it.

The record holds every score of every seed, so launch/verdict.py judges from it without the arms' files. Nothing is
measured here.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cpt_dist.evaluation import plots, statistics
from cpt_dist.evaluation.probe_claims import FORMAT
from cpt_dist.evaluation.report import render
from cpt_dist.evaluation.suites.compare import UNDECIDED
from cpt_dist.evaluation.suites.report import contamination_record, search_notes, unchecked_note
from cpt_dist.probe.arms import ArmScores
from cpt_dist.probe.compare import Comparison, ProbeResult
from cpt_dist.report_files import write_report_files

_STYLES = {"improved": "green", "kept": "green", "worse": "red", UNDECIDED: "yellow"}


def build_record(result: ProbeResult) -> dict[str, Any]:
    """The content of probe.json."""
    return {
        "format": FORMAT,
        "sentence": _sentence(result),
        "notes": _notes(result),
        "probe": result.task.suite.name,
        "spec": result.task.spec,
        "spec_hash": result.task.hash,
        "seeds": list(result.arms[0].seeds),
        "items": len(result.arms[0].before.keys),
        "chance": result.arms[0].before.chance,
        "majority": result.majority,
        "margin": result.margin,
        "settings": {
            "confidence": result.judge.confidence,
            "num_resamples": result.judge.num_resamples,
            "seed": result.judge.seed,
        },
        "arms": [_arm_record(one, result) for one in result.arms],
        "comparisons": [_comparison_record(one) for one in result.comparisons],
        "contamination": contamination_record(result.searched),
        "found": result.found,
        "unchecked": result.searched.unchecked[result.task.suite.name] if result.searched else None,
        "scores": {one.arm.name: one.values().tolist() for one in result.arms},
    }


def _arm_record(arm: ArmScores, result: ProbeResult) -> dict[str, Any]:
    values = arm.values()
    num_items = values.shape[1]
    means = values.mean(axis=1)

    def share(value: float) -> dict[str, Any]:
        low, high = statistics.wilson_interval(value, num_items, result.judge.confidence)
        return {"value": value, "low": low, "high": high}

    return {
        "arm": arm.arm.name,
        "folder": arm.arm.folder,
        "model": arm.arm.model,
        "taken_from_an_earlier_probe": arm.arm.made_before,
        "before": share(float(arm.before.values.mean())),
        "mean": float(means.mean()),
        "spread_of_seeds": float(means.std(ddof=1)),
        "seeds": [
            {"seed": seed, "score": share(float(scores.values.mean())), "answer_bits_per_byte": scores.answer_bits}
            | {"training": scores.training}
            for seed, scores in arm.seeds.items()
        ],
    }


def _comparison_record(found: Comparison) -> dict[str, Any]:
    return {
        "against": found.other,
        "gain": asdict(found.repeated.gain),
        "p_value": found.p_value,
        "outcome": found.outcome,
        "seed_share_of_variance": found.repeated.seed_share,
        "detectable": found.detectable,
        "items_needed": found.items_needed,
        "gain_with_found": asdict(found.with_found.gain) if found.with_found else None,
        "seeds": [asdict(one) for one in found.seeds],
    }


def _sentence(result: ProbeResult) -> str:
    parts = [
        f"{one.outcome} against {one.other} ({one.repeated.value:+.4f}, {one.repeated.low:+.4f} to "
        f"{one.repeated.high:+.4f})"
        for one in result.comparisons
    ]
    seeds = len(result.arms[0].seeds)
    return f"{result.task.suite.name} after fine-tuning, over {seeds} seeds, adapted: {'; '.join(parts)}."


def _notes(result: ProbeResult) -> list[str]:
    lines = []
    for arm in result.arms:
        mean, bar = float(arm.values().mean()), max(arm.before.chance, result.majority)
        if mean <= bar:
            lines.append(
                f"{arm.arm.name}: {mean:.4f} after fine-tuning is no more than always giving one answer, or a random "
                f"one, would have ({bar:.4f}); the recipe taught it nothing."
            )
    for found in result.comparisons:
        if found.outcome == UNDECIDED:
            line = f"Against {found.other}: undecided; a gain of {found.detectable:.4f} would show four times in five"
            if found.repeated.seed_share > 0.5:
                line += f". {found.repeated.seed_share:.0%} of the variance comes from the seeds: take more of them"
            elif found.items_needed is not None:
                line += f". About {found.items_needed:,} items like these would decide"
            lines.append(line + ".")
        signs = {one.gain.value > 0 for one in found.seeds if one.gain.value}
        if len(signs) > 1:
            lines.append(f"Against {found.other}: the sign of the gain differs from seed to seed.")
    if result.searched is None:
        lines.append("No training data of the sources was searched for the gold items.")
    else:
        name, items = result.task.suite.name, len(result.arms[0].before.keys)
        if result.found:
            lines.append(
                f"{len(result.found)} of {items} gold items occur in the training data and decide nothing; the gain "
                "with them stands beside the other."
            )
        if items - len(result.found) < 2:
            lines.append("Without them nothing is left to compare: the gains are those with them, and undecided.")
        if result.searched.unchecked[name]:
            lines.append(unchecked_note(name, result.searched.unchecked[name]))
        lines += search_notes(result.searched)
    folders = {one.arm.model for one in result.arms}
    if len(folders) < len(result.arms):
        lines.append("Two arms are the same model, so no difference can be found between them.")
    return lines


def write_probe(result: ProbeResult, folder: str | Path) -> dict[str, Any]:
    """Write the three files into `folder` (made if needed), each whole; return the record."""
    record = build_record(result)
    figure = Markup(plots.probe_scores(record["arms"], max(record["chance"], record["majority"])))
    pages = (render(f"probe.{kind}", record, figure=figure) for kind in ("md", "html"))
    write_report_files(folder, "probe", record, *pages)
    return record


def print_probe(record: dict[str, Any], console: Console) -> None:
    """Scores and comparisons on a terminal."""
    table = Table(title=f"Probe {record['probe']}: {record['spec']['gold']['metric']}, {record['items']:,} items")
    table.add_column("arm")
    for column in ("before", *(f"seed {one['seed']}" for one in record["arms"][0]["seeds"]), "mean"):
        table.add_column(column, justify="right")
    for arm in record["arms"]:
        seeds = [f"{one['score']['value']:.4f}" for one in arm["seeds"]]
        table.add_row(Text(arm["arm"]), f"{arm['before']['value']:.4f}", *seeds, f"{arm['mean']:.4f}")
    console.print(table)
    level = f"{record['settings']['confidence'] * 100:g}%"
    gains = Table(title=f"Adapted against (gain: positive is better; {level} interval over items and seeds)")
    for column in ("arm", "outcome"):
        gains.add_column(column)
    for column in ("gain", "interval", "p", "by seed"):
        gains.add_column(column, justify="right")
    for one in record["comparisons"]:
        gain = one["gain"]
        gains.add_row(
            Text(one["against"]),
            Text(one["outcome"], style=_STYLES[one["outcome"]]),
            f"{gain['value']:+.4f}",
            f"{gain['low']:+.4f} to {gain['high']:+.4f}",
            f"{one['p_value']:.4f}",
            ", ".join(f"{seed['gain']['value']:+.4f}" for seed in one["seeds"]),
        )
    console.print(gains)
    console.print(Text(record["sentence"]))
    console.print(Text(f"chance {record['chance']:.4f}, most frequent answer {record['majority']:.4f}"))
    for line in record["notes"]:
        console.print(Text(f"- {line}"))
