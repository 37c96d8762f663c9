"""The report of a curation as report.json, report.md and report.html, and its tables on a terminal.

All three files show the record of `curation_summary.py`; nothing is computed here. The page is one file without scripts
or anything fetched.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from cpt_dist.config import CptConfig
from cpt_dist.console import output_console
from cpt_dist.corpus.curation.curate import CuratedFolder
from cpt_dist.errors import UserError
from cpt_dist.figure_style import COLOURS, INK, STYLE, svg
from cpt_dist.files import atomic_write, write_json
from cpt_dist.planning.curation_summary import summarise
from cpt_dist.planning.run_figures import quantity
from cpt_dist.planning.run_report import PlanTable, print_table

FIRST_SCORES = ("quality", "gopher", "c4", "fineweb", "repetition", "format", "density", "perplexity", "relevance")
"""Scores that are drawn before those with thresholds; the record has all of them."""
_PANELS_IN_A_ROW = 3
_LANGUAGES_SHOWN = 12


def tables(record: dict[str, Any]) -> list[PlanTable]:
    """The tables of a record, those of each source first."""
    made = [_sources(record), _epochs(record), _overlap(record), _clusters(record), _contamination(record)]
    for name, source in record["sources"].items():
        made += [_steps(name, source), _reasons(name, source), _labels(name, source), _notes(name, source)]
    return [table for table in made if table is not None]


def _sources(record: dict[str, Any]) -> PlanTable:
    rows = []
    for name, source in record["sources"].items():
        if not source["steps"]:
            rows.append([name, source["role"], "0", "0", *["–"] * 6])
            continue
        first, last = source["steps"][0], source["steps"][-1]
        done = record["prepared"][name]
        rows.append(
            [
                name,
                source["role"],
                f"{first['read']:,}",
                f"{source['documents']:,}",
                quantity(first["bytes_read"]),
                quantity(last["bytes_kept"]),
                quantity(source["tokens_read"]),
                quantity(source["tokens"]),
                "exact" if source["tokens_counted"] else "from a part",
                f"{done['tokens']:,}" if done else "–",
            ]
        )
    columns = ["source", "role", "read", "left", "bytes read", "bytes left", "tokens read", "tokens left", "tokens are"]
    return PlanTable("sources", [*columns, "tokens in shards"], rows, words=2)


def _steps(name: str, source: dict[str, Any]) -> PlanTable:
    rows = [
        [
            one["step"],
            f"{one['read']:,}",
            f"{one['kept']:,}",
            f"{one['gone']:,}",
            f"{one['gone'] / one['read']:.2%}" if one["read"] else "–",
            quantity(one["bytes_read"]),
            quantity(one["bytes_kept"]),
            quantity(one["tokens_dropped"]),
            quantity(one["tokens_left"]),
        ]
        for one in source["steps"]
    ]
    columns = [
        "step",
        "read",
        "kept",
        "dropped",
        "share",
        "bytes before",
        "bytes after",
        "tokens dropped",
        "tokens left",
    ]
    return PlanTable(f"{name}: documents, bytes and tokens at each step", columns, rows)


def _reasons(name: str, source: dict[str, Any]) -> PlanTable | None:
    rows = [[one["step"], one["reason"], f"{one['documents']:,}"] for one in source["reasons"]]
    return PlanTable(f"{name}: why documents were dropped", ["step", "reason", "documents"], rows, 2) if rows else None


def _labels(name: str, source: dict[str, Any]) -> PlanTable | None:
    rows = []
    for label, values in source["labels"].items():
        total = sum(values.values())
        most = sorted(values.items(), key=lambda item: (-item[1], item[0]))
        rows += [[label, value, f"{n:,}", f"{n / total:.1%}"] for value, n in most[:_LANGUAGES_SHOWN]]
        if rest := sum(n for _, n in most[_LANGUAGES_SHOWN:]):
            rows.append([label, f"{len(most) - _LANGUAGES_SHOWN} others", f"{rest:,}", f"{rest / total:.1%}"])
    title = f"{name}: labels of what is left"
    return PlanTable(title, ["label", "value", "documents", "share"], rows, 2) if rows else None


def _notes(name: str, source: dict[str, Any]) -> PlanTable | None:
    rows = [[what, f"{number:,}"] for what, number in source["notes"].items()]
    if source["repaired_utf8"]:
        rows.append(["repaired_utf8", f"{source['repaired_utf8']:,}"])
    title = f"{name}: what steps counted in what is left (pii_…: hits of a detector; missed.…: rules not kept)"
    return PlanTable(title, ["count", "number"], rows) if rows else None


def _overlap(record: dict[str, Any]) -> PlanTable | None:
    rows = [[one["source"], one["of"], f"{one['exact']:,}", f"{one['near']:,}"] for one in record["overlap"]]
    title = "overlap: documents left out because another source, or their own, has them"
    return PlanTable(title, ["source", "has them from", "exactly", "nearly"], rows, 2) if rows else None


def _clusters(record: dict[str, Any]) -> PlanTable | None:
    clusters = record["clusters"]
    if not clusters or not clusters["clusters"]:
        return None
    rows = []
    least = 2
    for size, number in clusters["sizes"].items():
        rows.append([f"{least}" if least == int(size) else f"{least} – {size}", f"{number:,}"])
        least = int(size) + 1
    return PlanTable("clusters of near-duplicates by their documents", ["documents", "clusters"], rows)


def _contamination(record: dict[str, Any]) -> PlanTable | None:
    rows = [[item, f"{number:,}"] for item, number in record["contamination"]["most"]]
    title = "evaluation items found in the text (file:record), and documents dropped or counted for each"
    return PlanTable(title, ["item", "documents"], rows) if rows else None


def _epochs(record: dict[str, Any]) -> PlanTable | None:
    sources = record["epochs"].get("sources")
    if sources is None:
        return None
    rows = [
        [name, f"{one['tokens']:,}", quantity(one["tokens_read"]), f"{one['epochs']:.3g}"]
        for name, one in sources.items()
    ]
    return PlanTable("epochs implied by the planned mixture", ["source", "tokens", "tokens read", "epochs"], rows)


def remarks(record: dict[str, Any]) -> list[str]:
    """What the numbers need to be read with."""
    lines = []
    if "unknown" in record["epochs"]:
        lines.append(f"Epochs aren't known: {record['epochs']['unknown']}")
    for name, source in record["sources"].items():
        if not source["tokens_counted"]:
            lines.append(f"{name}: tokens were counted over a part of the text and scaled by bytes.")
    return lines


def figures(record: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(title, svg) of each figure."""
    with matplotlib.rc_context(STYLE):
        for number, (name, source) in enumerate(record["sources"].items()):
            if not source["steps"]:
                continue
            yield f"{name}: tokens left after each step", svg(_left(source), f"left-{number}")
            if source["scores"]:
                yield f"{name}: scores (line: threshold)", svg(_histograms(source["scores"]), f"scores-{number}")


def _left(source: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(9.0, 0.32 * len(source["steps"]) + 0.8), layout="constrained")
    axes = figure.add_subplot()
    names = [one["step"] for one in source["steps"]]
    places = range(len(names))
    axes.barh(places, [one["tokens_left"] for one in source["steps"]], color=COLOURS[0])
    lost = [one["tokens_dropped"] for one in source["steps"]]
    axes.barh(places, lost, left=[one["tokens_left"] for one in source["steps"]], color=COLOURS[3], alpha=0.7)
    axes.set_yticks(list(places), names)
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(lambda value, _: quantity(value))
    return figure


def shown_scores(scores: dict[str, Any]) -> list[str]:
    """The scores that are drawn: the components of quality and those with a threshold."""
    limited = [name for name, one in scores.items() if one["thresholds"] and name not in FIRST_SCORES]
    return [name for name in FIRST_SCORES if name in scores] + limited


def _histograms(scores: dict[str, Any]) -> Figure:
    names = shown_scores(scores) or list(scores)[: 2 * _PANELS_IN_A_ROW]
    rows = -(-len(names) // _PANELS_IN_A_ROW)
    figure = Figure(figsize=(9.0, 1.7 * rows), layout="constrained")
    for place, name in enumerate(names):
        axes, one = figure.add_subplot(rows, _PANELS_IN_A_ROW, place + 1), scores[name]
        axes.stairs(one["kept"], one["edges"], fill=True, color=COLOURS[0], alpha=0.8)
        both = [a + b for a, b in zip(one["kept"], one["dropped"], strict=True)]
        axes.stairs(both, one["edges"], baseline=one["kept"], fill=True, color=COLOURS[3], alpha=0.8)
        for limit in one["thresholds"]:
            if limit is not None:
                axes.axvline(limit, color=INK, linewidth=1.2)
        axes.set_title(name, fontsize=9)
        axes.set_yticks([])
    return figure


def report(config: CptConfig, folders: dict[str, CuratedFolder]) -> None:
    """Write the report of what `folders` were curated to, and print its tables and where the files are.

    Raises UserError where no source is curated, and what `summarise` raises.
    """
    if not folders:
        raise UserError("what=report: no source is curated; set data.sources.NAME.curation, such as {profile: legal}")
    record = summarise(config, folders)
    paths = write_report(record, config.prepare.out)
    console = output_console()
    for made in tables(record):
        print_table(made, console)
    for line in [*remarks(record), *map(str, paths)]:
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("cpt_dist.planning"),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def render_html(record: dict[str, Any]) -> str:
    """report.html of a record."""
    drawn = [(title, Markup(one)) for title, one in figures(record)]
    template = _environment().get_template("curation.html.j2")
    return template.render(record=record, tables=tables(record), figures=drawn, remarks=remarks(record))


def render_markdown(record: dict[str, Any]) -> str:
    """report.md of a record."""
    template = _environment().get_template("curation.md.j2")
    return template.render(record=record, tables=tables(record), remarks=remarks(record))


def write_report(record: dict[str, Any], folder: str | Path) -> list[Path]:
    """Write report.json, report.md and report.html into `folder` (made if needed), each whole; returns their paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in ("report.json", "report.md", "report.html")]
    write_json(paths[0], record)
    for path, text in zip(paths[1:], (render_markdown(record), render_html(record)), strict=True):
        with atomic_write(path, "w") as handle:
            handle.write(text)
    return paths
