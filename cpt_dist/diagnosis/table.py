"""A diagnosis on a terminal: what was measured, then the options with their reasons. Nothing is computed here."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cpt_dist.diagnosis.report import effect, interval

_STYLES = {True: "red", False: ""}


def _measures(record: dict[str, Any]) -> Table:
    names = list(record["sides"])
    table = Table(title=f"Measured with {record['model']}", title_justify="left")
    table.add_column("measure")
    for name in names:
        table.add_column(name, justify="right")
    rows = {
        "different tokens": lambda s: f"{s['tokens']['value']:,.0f}" + ("" if s["tokens_counted"] else " (by sample)"),
        "documents": lambda s: f"{s['documents']:,}",
        "exact duplicates": lambda s: f"{s['duplicate_share']:.1%}",
        "tokens per byte": lambda s: f"{s['tokens_per_byte']['value']:.4f}",
        "tokens per word": lambda s: "not run" if s["tokens_per_word"] is None else f"{s['tokens_per_word']:.3f}",
        "bits per byte": lambda s: f"{s['bits_per_byte']['value']:.4f} ({interval(s['bits_per_byte'])})",
        "documents scored": lambda s: f"{s['scored_documents']:,}",
    }
    for label, write in rows.items():
        table.add_row(label, *[write(record["sides"][name]) for name in names])
    return table


def _comparison(record: dict[str, Any]) -> Table:
    table = Table(title="Domain against general text", title_justify="left")
    for column in ("measure", "value", "interval or reason"):
        table.add_column(column, overflow="fold")
    gap, overlap, pilot = record["gap"], record["overlap"], record["pilot"]
    if gap["status"] == "measured":
        table.add_row("gap in bits per byte", f"{gap['value']:+.4f}", interval(gap))
    else:
        table.add_row("gap in bits per byte", "not run", gap["reason"])
    if record["fertility_ratio"] is not None:
        table.add_row("fertility ratio", f"{record['fertility_ratio']:.3f}", "")
    if overlap["status"] == "measured":
        halves = f"{overlap['domain_general']:.1%}; two halves of the general text {overlap['general_general']:.1%}"
        table.add_row("relative word overlap", f"{overlap['relative']:.3f}", halves)
    else:
        table.add_row("relative word overlap", "not run", overlap["reason"])
    if pilot["status"] == "measured":
        learned = pilot["learnability"]
        size = f"{interval(learned, 'percent')}; {pilot['steps']} steps, {pilot['tokens']:,} tokens"
        table.add_row("taken off by the pilot", f"{learned['value']:.2%}", size)
        if pilot["general_change"]:
            change = pilot["general_change"]
            table.add_row("general text after it", f"{change['value']:+.4f}", interval(change))
    else:
        table.add_row("pilot", "not run", pilot["reason"])
    return table


def _options(record: dict[str, Any]) -> Table:
    table = Table(title="Options, the best first", title_justify="left", show_lines=True)
    table.add_column("option")
    table.add_column("points", justify="right")
    table.add_column("why (and where the rule is from)", overflow="fold")
    for one in record["options"]:
        points = "ruled out" if one["ruled_out"] else f"{one['points']:+d}"
        why = "\n".join(f"{effect(r['effect'])}  {r['text']} [{r['source']}]" for r in one["reasons"])
        table.add_row(one["option"], Text(points, style=_STYLES[one["ruled_out"]]), Text(why or "no rule spoke of it"))
    return table


def print_record(record: dict[str, Any], console: Console) -> None:
    """Print a record of `report.build_record`."""
    console.print(_measures(record))
    console.print(_comparison(record))
    console.print(_options(record))
    console.print(Text(record["sentence"]), soft_wrap=True)
    for warning in record["warnings"]:
        console.print(Text(f"warning: {warning}", style="yellow"), soft_wrap=True)
    if record["unknown"]:
        unknown = "; ".join(f"{one['fact']} ({one['known_by']})" for one in record["unknown"])
        console.print(Text(f"unknown, so not weighed: {unknown}"), soft_wrap=True)
