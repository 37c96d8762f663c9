"""The report's main table on a terminal.

It shows numbers of report.json's record and computes none.
"""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cpt_dist.evaluation.evaluate import MEASURED

_STYLES = {"improved": "green", "worse": "red", "undecided": "yellow"}


def print_table(record: dict[str, Any], console: Console) -> None:
    """Print bits per byte before and after of each source of a record of `report.build_record`, and its sentence."""
    level = f"{record['settings']['confidence'] * 100:g}%"
    table = Table(title="Bits per byte of held-out text (lower is better)")
    for column in ("source", "role"):
        table.add_column(column)
    for column in ("before", "after", "change", f"{level} interval"):
        table.add_column(column, justify="right")
    table.add_column("outcome")
    table.add_column("documents", justify="right")
    for source in record["sources"]:
        name = Text(source["source"])
        if source["status"] != MEASURED:
            table.add_row(name, source["role"], *["not run"] * 3, "", "", "")
            continue
        change = source["difference"]
        interval = "none" if change["low"] is None else f"{change['low']:+.4f} to {change['high']:+.4f}"
        table.add_row(
            name,
            source["role"],
            f"{source['base']['value']:.4f}",
            f"{source['adapted']['value']:.4f}",
            f"{change['value']:+.4f}",
            interval,
            Text(source["outcome"], style=_STYLES[source["outcome"]]),
            f"{source['documents']:,}",
        )
    console.print(table)
    console.print(Text(record["sentence"]))
    for note in record["notes"]:
        console.print(Text(f"- {note}"))
