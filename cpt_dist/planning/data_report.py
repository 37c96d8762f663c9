"""The data plan on a terminal, as plan.json and as a figure of mixture and learning rate. Nothing is computed here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cpt_dist.files import atomic_write, write_json

_SHOWN_SOURCES = 8
_COLOURS = ("#3b82c4", "#e08a1e", "#2f9e6e", "#c8517b", "#8a6fd1", "#8c7a4d", "#2aa5b5", "#b5473c", "#9a9a9a")
_OTHERS = "(others)"


def write_data_plan(plan: dict[str, Any], folder: str | Path) -> list[Path]:
    """Write plan.json and mixture.png into `folder`; returns their paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "plan.json", folder / "mixture.png"]
    write_json(paths[0], plan)
    with atomic_write(paths[1]) as handle:
        _figure(plan).savefig(handle, format="png", dpi=120)
    return paths


def _shown(plan: dict[str, Any]) -> list[str]:
    """The sources that read most, at most as many as fit, in their order of tokens."""
    names = sorted(plan["sources"], key=lambda name: -plan["sources"][name]["tokens_read"])
    return names if len(names) <= _SHOWN_SOURCES else names[: _SHOWN_SOURCES - 1]


def _shares(plan: dict[str, Any], point: dict[str, Any], names: list[str]) -> dict[str, float]:
    """Shares of the shown sources, and of all others together where not all are shown."""
    shares = {name: point["shares"].get(name, 0.0) for name in names}
    if len(names) < len(plan["sources"]):
        shares[_OTHERS] = max(0.0, 1.0 - sum(shares.values()))
    return shares


def _figure(plan: dict[str, Any]) -> Figure:
    """Shares of planned tokens, stacked, over steps; below them the learning rate."""
    names = _shown(plan)
    points = [point for stage in plan["stages"] for point in stage["timeline"]]
    labels = list(_shares(plan, points[0], names))
    edges = [points[0]["steps"][0] - 1] + [point["steps"][1] for point in points]
    columns = [_shares(plan, point, names) for point in points]
    stacks = [[column[label] for column in columns] for label in labels]
    figure = Figure(figsize=(8, 5), layout="constrained")
    mixture, rate = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    below = [0.0] * len(points)
    for label, stack, colour in zip(labels, stacks, _COLOURS, strict=False):
        above = [low + value for low, value in zip(below, stack, strict=True)]
        # A leading space, because a legend drops names that begin with an underscore.
        mixture.stairs(above, edges, baseline=below, fill=True, color=colour, label=f" {label}")
        below = above
    mixture.set(ylabel="share of planned tokens", ylim=(0, 1))
    mixture.yaxis.set_major_formatter(PercentFormatter(1.0))
    mixture.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    for stage in plan["stages"]:
        rate.plot(*zip(*stage["learning_rates"], strict=True), color=_COLOURS[0])
    rate.set(xlabel="step", ylabel="learning rate", ylim=(0, None))
    at = 0
    for stage in plan["stages"]:
        for axes in (mixture, rate):
            axes.axvline(at, color="#555555", linestyle=":", linewidth=1)
        rate.text(at, 0, f" {stage['name']}", rotation=90, va="bottom", fontsize=8, parse_math=False)
        at += stage["steps"]
    return figure


def _table(title: str, names: list[str], numbers: list[str]) -> Table:
    table = Table(title=Text(title), title_justify="left")
    for name in names:
        table.add_column(name, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def print_data_plan(plan: dict[str, Any], console: Console) -> None:
    """Sources, then each stage with what it reads and its timeline, then the warnings."""
    total = plan["total"]
    console.print(f"{total['steps']:,} steps, {total['samples']:,} samples, {total['tokens']:,} tokens")
    numbers = ["shards", "documents", "held out", "tokens", "tokens read", "epochs"]
    table = _table("sources", ["source", "role", "licence"], numbers)
    for name, source in plan["sources"].items():
        keys = ("shards", "documents", "held_out_documents", "tokens", "tokens_read")
        words = [Text(name), source["role"], Text(source["licence"])]
        table.add_row(*words, *[f"{source[key]:,}" for key in keys], f"{source['epochs']:.3g}")
        for stratum, part in source.get("strata", {}).items():
            counts = ["", f"{part['documents']:,}", "", *[f"{part[key]:,}" for key in ("tokens", "tokens_read")]]
            table.add_row(Text(f"  {stratum}"), "", "", *counts, f"{part['epochs']:.3g}")
    console.print(table)
    for stage in plan["stages"]:
        _print_stage(plan, stage, console)
    for warning in plan["warnings"]:
        console.print(Text(f"warning: {warning}", style="yellow"), soft_wrap=True)


def _epochs_in_words(epochs: Any) -> str:
    if isinstance(epochs, dict):
        return "epochs of " + ", ".join(f"{name}: {times:g}" for name, times in epochs.items())
    return f"{epochs:g} epochs of the domain sources"


def _print_stage(plan: dict[str, Any], stage: dict[str, Any], console: Console) -> None:
    size = f"{stage['batch_samples']:,} x {stage['seq_len']:,} tokens ({stage['packing']})"
    epochs = "" if stage["epochs_asked"] is None else f" for {_epochs_in_words(stage['epochs_asked'])}"
    title = (
        f"stage '{stage['name']}': {stage['steps']:,} steps of {size}{epochs}; "
        f"no source is ever more than {stage['quota_error_samples']:.2f} samples off its share"
    )
    numbers = [
        "rows",
        "samples",
        "tokens",
        "share",
        "asked",
        "epochs",
        "unseen",
        "full",
        "padding",
        "left out",
        "cuts at most",
        "joined",
    ]
    table = _table(title, ["source"], numbers)
    records = []
    for name, record in stage["sources"].items():
        records += [(name, record), *((f"  {view}", part) for view, part in record.get("strata", {}).items())]
    for name, read in records:
        table.add_row(
            Text(name),
            *[f"{read[key]:,}" for key in ("rows", "samples", "tokens")],
            *[f"{read[key]:.2%}" for key in ("share", "share_asked")],
            f"{read['epochs_so_far']:.3g}",
            f"{read['unseen_share']:.1%}",
            f"{read['utilisation']:.2%}",
            *[f"{read[key]:,}" for key in ("padding_tokens", "truncated_tokens", "cuts_at_most")],
            "–" if read["joined_tokens"] is None else f"{read['joined_tokens'] / max(1, read['tokens']):.1%}",
        )
    console.print(table)
    names = _shown(plan)
    labels = list(_shares(plan, stage["timeline"][0], names))
    table = _table(f"stage '{stage['name']}': planned share of tokens", ["progress"], ["steps", "lr after", *labels])
    for point in stage["timeline"]:
        low, high = point["progress"]
        first, last = point["steps"]
        shares = [f"{value:.1%}" for value in _shares(plan, point, names).values()]
        table.add_row(f"{low:.0%} – {high:.0%}", f"{first:,} – {last:,}", f"{point['learning_rate']:.2e}", *shares)
    console.print(table)
