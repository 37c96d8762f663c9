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
from cpt_dist.planning.curation_summary import PERCENTILES, summarise
from cpt_dist.planning.run_figures import quantity
from cpt_dist.planning.run_report import PlanTable, print_table

FIRST_SCORES = ("quality", "gopher", "c4", "fineweb", "repetition", "format", "density", "perplexity", "relevance")
"""Scores that are drawn before those with thresholds; the record has all of them."""
_PANELS_IN_A_ROW = 3
_LANGUAGES_SHOWN, _RULES_SHOWN = 12, 10
_LINE = 80
_MISSED = "missed."
_BARS = " ▁▂▃▄▅▆▇█"


def tables(record: dict[str, Any]) -> list[PlanTable]:
    """The tables of a record, those of each source first."""
    made = [_sources(record), _epochs(record), _overlap(record), _clusters(record), _largest(record)]
    made.append(_contamination(record))
    for name, source in record["sources"].items():
        made += [_steps(name, source), _reasons(name, source), _labels(name, source), _scores(name, source)]
        made += [_notes(name, source), _missed(name, source)]
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
                "exact" if source["tokens_counted"] else "in part estimated",
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
            f"{one['pieces']:,}",
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
        "become",
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
    for label, before in source["labels_before"].items():
        left = source["labels"].get(label, {})
        most = sorted(before, key=lambda value: (-before[value], value))
        named, others = most[:_LANGUAGES_SHOWN], most[_LANGUAGES_SHOWN:]
        shown = [(value, before[value], left.get(value, 0)) for value in named]
        if others:
            sums = (sum(counts.get(value, 0) for value in others) for counts in (before, left))
            shown.append((f"{len(others)} others", *sums))
        for value, there, here in shown:
            rows.append([label, value, f"{there:,}", _share(there, before), f"{here:,}", _share(here, left)])
    title = f"{name}: labels, such as the language, before the filters (without exact duplicates) and of what is left"
    return PlanTable(title, ["label", "value", "before", "share", "left", "share"], rows, 2) if rows else None


def _share(number: int, counts: dict[str, int]) -> str:
    return f"{number / total:.1%}" if (total := sum(counts.values())) else "–"


def _scores(name: str, source: dict[str, Any]) -> PlanTable | None:
    """Scores of all documents that have them, as percentiles and as a row of bars with the thresholds in it."""
    rows = []
    for score in shown_scores(source["scores"]):
        one = source["scores"][score]
        least, most = [*one["thresholds"], None, None][:2]
        limits = ["–" if limit is None else f"{limit:g}" for limit in (least, most)]
        gone = sum(
            reason["documents"] for reason in source["reasons"] if reason["reason"] in (f"{score}_low", f"{score}_high")
        )
        values = [f"{value:.3g}" for value in one["percentiles"]]
        rows.append([score, bars(one), *limits, f"{gone:,}", *values])
    title = f"{name}: scores of what was scored (│ threshold; the outermost bars hold what lies beyond)"
    columns = ["score", "from 0.5% to 99.5%", "least", "most", "dropped by it", *(f"{p}%" for p in PERCENTILES)]
    return PlanTable(title, columns, rows, 2) if rows else None


def bars(score: dict[str, Any]) -> str:
    """A histogram as text: a bar for every two bins, and a line before the bar in which a threshold lies."""
    both = [kept + dropped for kept, dropped in zip(score["kept"], score["dropped"], strict=True)]
    pairs = [sum(both[at : at + 2]) for at in range(0, len(both), 2)]
    highest = max(pairs)
    drawn = [_BARS[-(-number * (len(_BARS) - 1) // highest)] for number in pairs]
    low, high = score["edges"][0], score["edges"][-1]
    for limit in sorted((limit for limit in score["thresholds"] if limit is not None), reverse=True):
        place = round((limit - low) / (high - low) * len(pairs))
        drawn.insert(min(max(place, 0), len(pairs)), "│")
    return "".join(drawn)


def _notes(name: str, source: dict[str, Any]) -> PlanTable | None:
    rows = [[what, f"{number:,}"] for what, number in source["notes"].items() if not what.startswith(_MISSED)]
    if source["repaired_utf8"]:
        rows.append(["repaired_utf8", f"{source['repaired_utf8']:,}"])
    title = f"{name}: what steps counted in what is left (pii_…: hits of a detector)"
    return PlanTable(title, ["count", "number"], rows) if rows else None


def _missed(name: str, source: dict[str, Any]) -> PlanTable | None:
    missed = {what.removeprefix(_MISSED): n for what, n in source["notes"].items() if what.startswith(_MISSED)}
    most = sorted(missed.items(), key=lambda item: (-item[1], item[0]))[:_RULES_SHOWN]
    rows = [[rule, f"{number:,}"] for rule, number in most]
    title = f"{name}: rules that most documents that are left don't keep (they lower scores, and drop nothing)"
    return PlanTable(title, ["rule", "documents"], rows) if rows else None


def _overlap(record: dict[str, Any]) -> PlanTable | None:
    rows = [[one["source"], one["of"], f"{one['exact']:,}", f"{one['near']:,}"] for one in record["overlap"]]
    title = "overlap: documents left out because another source, or their own, has them"
    return PlanTable(title, ["source", "has them from", "exactly", "nearly"], rows, 2) if rows else None


def _clusters(record: dict[str, Any]) -> PlanTable | None:
    clusters = record["clusters"]
    if not clusters or not clusters["clusters"]:
        return None
    rows = []
    for size, number in clusters["sizes"].items():
        least = int(size) // 2 + 1  # sizes are powers of two, each for those above the one before
        rows.append([size if least == int(size) else f"{least} – {size}", f"{number:,}"])
    return PlanTable("clusters of near-duplicates by their documents", ["documents", "clusters"], rows)


def _largest(record: dict[str, Any]) -> PlanTable | None:
    clusters = record["clusters"]
    if not clusters or not clusters["largest"]:
        return None
    rows = [
        [one["source"] or "–", _one_line(one["text"]), f"{one['documents']:,}", f"{one['kept']:,}"]
        for one in clusters["largest"]
    ]
    columns = ["source of the best", "how the best begins", "documents", "stay"]
    return PlanTable("largest clusters of near-duplicates", columns, rows, 2)


def _one_line(text: str | None) -> str:
    words = " ".join((text or "(a text of the evaluation, or gone at a later step)").split())
    return words if len(words) <= _LINE else words[:_LINE] + "…"


def _contamination(record: dict[str, Any]) -> PlanTable | None:
    rows = [[item, f"{number:,}"] for item, number in record["contamination"]["most"]]
    title = "evaluation items found in the text (file:record), and documents dropped or parts cut out for each"
    return PlanTable(title, ["item", "documents or parts"], rows) if rows else None


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
            lines.append(
                f"{name}: some tokens are estimated from bytes: those of exact duplicates, kept once only, "
                "or of text beyond prepare.report_bytes."
            )
        if {"joining", "chunking"} & {step["step"] for step in source["steps"]}:
            lines.append(
                f"{name}: 'become' says how many documents are made of the kept ones; labels count documents before "
                "joining, scores those that are left (a joined one has the mean, a piece those of its document)."
            )
    return lines


def figures(record: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(title, svg) of each figure."""
    with matplotlib.rc_context(STYLE):
        for number, (name, source) in enumerate(record["sources"].items()):
            if not source["steps"]:
                continue
            yield f"{name}: tokens left after each step", svg(_left(source), f"left-{number}")
            if source["scores"]:
                title = f"{name}: scores of what stays (blue) and was dropped after scoring (red); lines: thresholds"
                yield title, svg(_histograms(source["scores"]), f"scores-{number}")


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
                axes.text(
                    limit, 0.98, f" {limit:g}", color=INK, fontsize=7, va="top", transform=axes.get_xaxis_transform()
                )
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


def stays_line(stays: dict[str, Any]) -> str:
    """What is said between a duplicate and the text that stays instead."""
    if stays["source"] is None:
        return "What stayed instead is a text of the evaluation, or went at a later step."
    return f"What stays instead, in '{stays['source']}'{', is the same' if stays['text'] is None else ':'}"


def _indented(text: str) -> str:
    """A text as a block of code within an item of a Markdown list."""
    return "\n".join(f"      {line}" for line in text.splitlines())


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("cpt_dist.planning"),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals |= {"stays_line": stays_line, "indented": _indented}
    return environment


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
