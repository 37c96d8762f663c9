"""The figures of the report, each an SVG element that takes its text colour from the page.

How they look and how one becomes SVG is in `figure_style.py`. Nothing is computed here but positions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from cpt_dist.evaluation.run_log import RunLog
from cpt_dist.figure_style import COLOURS as _COLOURS
from cpt_dist.figure_style import INK as _INK
from cpt_dist.figure_style import STYLE as _STYLE
from cpt_dist.figure_style import svg as _svg


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


Curve = tuple[Sequence[float], Sequence[float]]


def _curves(axes: Axes, curves: Sequence[Curve], **style: Any) -> list[Any]:
    colours = itertools.cycle(_COLOURS)
    return [axes.plot(x, y, color=colour, **style)[0] for (x, y), colour in zip(curves, colours, strict=False)]


def _legend(axes: Axes, handles: list[Any], names: Sequence[str]) -> None:
    legend = axes.legend(handles, [f"{index}" for index in range(len(names))], loc="best")
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(name)  # afterwards, because a legend drops names that begin with an underscore


def _mark_starts(axes: Axes, log: RunLog) -> None:
    for start in log.starts[1:]:
        axes.axvline(start["step"], color=_INK, alpha=0.8, linestyle=":", linewidth=1.4)


def loss(log: RunLog) -> str:
    """Training loss per target token, of all sources together (thick) and of each."""
    names = sorted({name for record in log.steps for name in record.get("loss_by_source", {})})
    curves = []
    for name in names:
        own = [(r["step"], r["loss_by_source"][name]) for r in log.steps if name in r.get("loss_by_source", {})]
        curves.append(([step for step, _ in own], [value for _, value in own]))
    together = [r["step"] for r in log.steps], [r["loss"] for r in log.steps]
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes(5.2, 2.8)
        handles = axes.plot(*together, color=_INK, linewidth=2.2, alpha=0.85)
        if len(names) > 1:
            handles += _curves(axes, curves, linewidth=1.2)
        _mark_starts(axes, log)
        axes.set(xlabel="step", ylabel="loss (nats per token)")
        _legend(axes, handles, ["all sources", *names][: len(handles)])
        return _svg(figure, "training-loss")


def learning_rate(log: RunLog) -> str:
    """Learning rate of each step."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes(5.2, 2.2)
        axes.plot([r["step"] for r in log.steps], [r["lr"] for r in log.steps], color=_COLOURS[0])
        _mark_starts(axes, log)
        axes.set(xlabel="step", ylabel="learning rate", ylim=(0, None))
        return _svg(figure, "learning-rate")


def held_out(log: RunLog) -> str:
    """Bits per byte of held-out text within training, by source."""
    names = sorted({name for record in log.evaluations for name in record["sources"]})
    curves = []
    for name in names:
        own = [(r["step"], r["sources"][name]["bits_per_byte"]) for r in log.evaluations if name in r["sources"]]
        curves.append(([step for step, _ in own], [value for _, value in own]))
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes(5.2, 2.8)
        handles = _curves(axes, curves, marker="o", markersize=4)
        _mark_starts(axes, log)
        axes.set(xlabel="step", ylabel="bits per byte (held out)")
        _legend(axes, handles, names)
        return _svg(figure, "held-out-bits-per-byte")


def tokens(sources: Sequence[dict[str, Any]]) -> str:
    """Planned and realised tokens of each source (records of `RunLog.facts`)."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes(5.2, 0.9 + 0.6 * len(sources))
        rows = range(len(sources))
        bars = []
        for key, shift, colour in (("planned_tokens", -0.19, _COLOURS[7]), ("realised_tokens", 0.19, _COLOURS[0])):
            lengths = [math.nan if source[key] is None else source[key] for source in sources]
            bars.append(axes.barh([row + shift for row in rows], lengths, 0.36, color=colour))
        axes.set_yticks(rows, [s["source"] for s in sources])
        axes.invert_yaxis()
        axes.set(xlabel="tokens")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.grid(axis="y", visible=False)
        axes.legend(bars, ["planned", "realised"], loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2)
        return _svg(figure, "tokens")


def _error(estimate: dict[str, Any]) -> list[list[float]] | None:
    if estimate["low"] is None or estimate["high"] is None or estimate["value"] is None:
        return None
    return [[estimate["value"] - estimate["low"]], [estimate["high"] - estimate["value"]]]


def changes(sources: Sequence[dict[str, Any]]) -> str:
    """Change in bits per byte of each measured source of report.json, with its interval; left is better."""
    colour = {"improved": _COLOURS[2], "worse": _COLOURS[3], "undecided": _COLOURS[7]}
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes(5.2, 1.1 + 0.45 * len(sources))
        for row, source in enumerate(sources):
            difference = source["difference"]
            shown = colour[source["outcome"]]
            axes.errorbar([difference["value"]], [row], xerr=_error(difference), fmt="o", capsize=4, color=shown)
        axes.axvline(0, color=_INK, linewidth=1)
        axes.set_yticks(range(len(sources)), [f"{s['source']} ({s['role']})" for s in sources])
        axes.set(xlabel="bits per byte (below 0: better)", ylim=(len(sources) - 0.4, -0.6))
        axes.margins(x=0.15)
        axes.grid(axis="y", visible=False)
        return _svg(figure, "change-by-source")


def loss_by_position(curves: dict[str, Sequence[dict[str, Any]]]) -> str:
    """Nats per token of each bucket of positions with its interval, for each model; the axis is logarithmic."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes(5.2, 2.8)
        handles = []
        for (buckets, colour), shift in zip(zip(curves.values(), _COLOURS, strict=False), (1.0, 1.06), strict=False):
            ends = [bucket["stop"] * shift for bucket in buckets]
            errors = [_error(bucket["loss"]) or [[0.0], [0.0]] for bucket in buckets]
            bars = [[error[side][0] for error in errors] for side in (0, 1)]
            values = [bucket["loss"]["value"] for bucket in buckets]
            handles.append(axes.errorbar(ends, values, yerr=bars, marker="o", markersize=4, capsize=3, color=colour))
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set(xlabel="tokens before, up to", ylabel="nats per token")
        _legend(axes, handles, list(curves))
        return _svg(figure, "loss-by-position")


def task_scores(rows: Sequence[dict[str, Any]], model: str) -> str:
    """Score of every task (rows) at every length (columns) of one model and one way of scoring, as a map."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    lengths = sorted({row["length"] for row in rows})
    scores = {(row["task"], row["length"]): row[model]["value"] for row in rows if row[model]}
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes(5.2, 0.8 + 0.32 * len(tasks))
        table = [[scores.get((task, length), math.nan) for length in lengths] for task in tasks]
        axes.imshow(table, vmin=0, vmax=1, aspect="auto", cmap="viridis")
        for y, line in enumerate(table):
            for x, value in enumerate(line):
                if not math.isnan(value):
                    axes.text(x, y, f"{value:.2f}", ha="center", va="center", color="white" if value < 0.6 else "black")
        axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
        axes.set_yticks(range(len(tasks)), tasks)
        axes.grid(visible=False)
        axes.set(xlabel="tokens of the prompt")
        return _svg(figure, f"task-scores-{rows[0]['way']}-{model}")


def trade_off(gain: dict[str, Any], forgetting: dict[str, Any]) -> str:
    """Domain gained against general forgotten (macro averages of report.json), with both intervals."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes(5.2, 3.2)
        axes.axhline(0, color=_INK, linewidth=1)
        axes.axvline(0, color=_INK, linewidth=1)
        axes.plot([0], [0], "o", color=_INK)
        axes.annotate("base", (0, 0), xytext=(6, -12), textcoords="offset points")
        x, y = forgetting["value"], gain["value"]
        axes.errorbar([x], [y], xerr=_error(forgetting), yerr=_error(gain), fmt="o", capsize=4, color=_COLOURS[0])
        axes.annotate("adapted", (x, y), xytext=(6, 6), textcoords="offset points", color=_COLOURS[0])
        axes.margins(0.25)
        axes.set(xlabel="general text forgotten (bits per byte)", ylabel="domain gained (bits per byte)")
        return _svg(figure, "gained-against-forgotten")


def pareto(points: Sequence[dict[str, Any]]) -> str:
    """Gain against forgetting of several models; up and left is better, and the base lies where the lines cross."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes(5.2, 3.4)
        axes.axhline(0, color=_INK, alpha=0.4, linewidth=1)
        axes.axvline(0, color=_INK, alpha=0.4, linewidth=1)
        for index, point in enumerate(points):
            x, y = point["forgetting"], point["gain"]
            axes.errorbar(
                x["value"],
                y["value"],
                xerr=_reach(x),
                yerr=_reach(y),
                marker="o",
                linestyle="none",
                color=_COLOURS[index % len(_COLOURS)],
                elinewidth=1,
            )
            axes.annotate(
                point["name"], (x["value"], y["value"]), xytext=(5, 5), textcoords="offset points", fontsize=9
            )
        axes.set(xlabel="forgotten on replay sources (bits per byte)", ylabel="gained on domain sources")
        return _svg(figure, "gain-against-forgetting")


def _reach(estimate: dict[str, Any]) -> list[list[float]] | None:
    if estimate["low"] is None:
        return None
    return [[estimate["value"] - estimate["low"]], [estimate["high"] - estimate["value"]]]


def suite_gains(suites: Sequence[dict[str, Any]]) -> str:
    """Gain of each suite with its interval, right of 0 is better; a dash marks the loss that still counts as kept."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes(6.2, 0.9 + 0.36 * len(suites))
        for place, suite in enumerate(suites):
            gain = suite["gain"]
            if gain["low"] is not None:
                axes.plot([gain["low"], gain["high"]], [place, place], color=_COLOURS[0], linewidth=2)
            axes.plot([gain["value"]], [place], "o", color=_COLOURS[0])
            axes.plot([-suite["margin"]] * 2, [place - 0.4, place + 0.4], color=_COLOURS[3], linestyle="--")
        axes.axvline(0, color=_INK, alpha=0.6, linewidth=1)
        axes.set(xlabel="gain (adapted - base, in the direction that is better)", ylim=(len(suites) - 0.5, -0.5))
        axes.set_yticks(range(len(suites)), [suite["suite"] for suite in suites])
        return _svg(figure, "suite-gains")


def probe_scores(arms: Sequence[dict[str, Any]], bar: float) -> str:
    """Scores of each arm of probe.json: hollow before fine-tuning, full for each seed; the line is chance's, or that of
    the most frequent answer."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes(6.2, 0.9 + 0.45 * len(arms))
        for place, arm in enumerate(arms):
            values = [seed["score"]["value"] for seed in arm["seeds"]]
            axes.plot(values, [place] * len(values), "o", color=_COLOURS[0])
            axes.plot([arm["before"]["value"]], [place], "o", markerfacecolor="none", color=_COLOURS[0])
        axes.axvline(bar, color=_COLOURS[3], linestyle="--")
        axes.set(xlabel="score on the gold set", ylim=(len(arms) - 0.5, -0.5))
        axes.set_yticks(range(len(arms)), [arm["arm"] for arm in arms])
        return _svg(figure, "probe-scores")
