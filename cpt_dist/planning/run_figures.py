"""The figures of a run's preview, over tokens: mixture, learning rate, length of rows; and RoPE over dimensions.

One panel is drawn by one function, for the PNG (all panels beneath each other) and for the page (an SVG each). Nothing
is computed here but positions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import IO, Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator, PercentFormatter

from cpt_dist.figure_style import COLOURS, INK, STYLE, svg

_SHOWN_SOURCES = 8
_OTHERS = "(others)"
_KINDS = {"seen": COLOURS[2], "interpolated": COLOURS[0], "extrapolated": COLOURS[3]}
_LEGEND: Any = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5), "borderaxespad": 0.0, "handlelength": 1.2}
_WIDTH = 9.0
_LEAST_GAP = 0.11
"""Between two labels of an axis, as a share of its height."""


def quantity(value: float) -> str:
    """A count with a unit: 20B, 1.5M, 4,096."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= 10 * size or (value >= size and size > 1e3):
            return f"{value / size:.3g}{unit}"
    return f"{value:,.0f}"


def _bounds(plan: dict[str, Any]) -> list[int]:
    """Tokens (of full rows) before each stage, and at the end."""
    return list(itertools.accumulate((stage["tokens"] for stage in plan["stages"]), initial=0))


def _tokens_at(stage: dict[str, Any], before: int, step: int) -> int:
    """Tokens done after a step of a stage."""
    return int(before + (step - stage["first_step"] + 1) * stage["batch_tokens"])


def _mark_stages(axes: Axes, plan: dict[str, Any], names: bool = False) -> None:
    bounds = _bounds(plan)
    axes.set_xlim(0, bounds[-1])
    axes.xaxis.set_major_locator(MaxNLocator(8))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: quantity(value)))
    for at in bounds[1:-1]:
        axes.axvline(at, color=INK, alpha=0.8, linestyle=":", linewidth=1.2)
    if not names:
        return
    for begin, end, stage in zip(bounds, bounds[1:], plan["stages"], strict=False):
        narrow = (end - begin) / bounds[-1] < 0.16
        place: Any = {"rotation": 40, "ha": "left"} if narrow else {"ha": "center"}
        where = begin if narrow else (begin + end) / 2
        axes.annotate(
            stage["name"],
            (where, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 4),
            textcoords="offset points",
            va="bottom",
            fontsize=9,
            annotation_clip=False,
            **place,
        )


def shown_shares(plan: dict[str, Any]) -> tuple[list[str], list[dict[str, float]]]:
    """Names of the sources that a figure has room for, those that read most first, and shares at each point."""
    points = [(stage["tokens"], point) for stage in plan["stages"] for point in stage["timeline"]]
    weight: dict[str, float] = {}
    for tokens, point in points:
        for name, share in point["shares"].items():
            weight[name] = weight.get(name, 0.0) + tokens * share
    names = sorted(weight, key=lambda name: -weight[name])
    if len(names) <= _SHOWN_SOURCES:
        return names, [{name: point["shares"].get(name, 0.0) for name in names} for _, point in points]
    kept = names[: _SHOWN_SOURCES - 1]
    shares = [{name: point["shares"].get(name, 0.0) for name in kept} for _, point in points]
    return [*kept, _OTHERS], [{**one, _OTHERS: max(0.0, 1.0 - sum(one.values()))} for one in shares]


def _mixture(axes: Axes, plan: dict[str, Any], names: bool = True) -> None:
    edges = [0]
    for stage, before in zip(plan["stages"], _bounds(plan), strict=False):
        edges += [_tokens_at(stage, before, point["steps"][1]) for point in stage["timeline"]]
    labels, shares = shown_shares(plan)
    below = [0.0] * len(shares)
    bands = []
    for label, colour in zip(labels, itertools.cycle(COLOURS), strict=False):
        above = [low + share[label] for low, share in zip(below, shares, strict=True)]
        axes.stairs(above, edges, baseline=below, fill=True, color=colour)
        bands.append(Patch(color=colour))
        below = above
    axes.set(ylabel="share of tokens", ylim=(0, 1))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    legend = axes.legend(bands, [str(number) for number in range(len(bands))], **_LEGEND)
    for text, name in zip(legend.get_texts(), labels, strict=True):
        text.set_text(name)  # afterwards, because a legend drops names that begin with an underscore
    _mark_stages(axes, plan, names)


def _learning_rate(axes: Axes, plan: dict[str, Any], names: bool = True) -> None:
    for stage, before in zip(plan["stages"], _bounds(plan), strict=False):
        steps, rates = zip(*stage["schedule"]["learning_rates"], strict=True)
        axes.plot([_tokens_at(stage, before, step) for step in steps], rates, color=COLOURS[0], linewidth=1.6)
        if stage["steps"] <= 3:
            axes.plot([_tokens_at(stage, before, step) for step in steps], rates, "o", color=COLOURS[0], markersize=3)
    axes.set(ylabel="learning rate")
    axes.set_ylim(0, None)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    _mark_stages(axes, plan, names)


def _lengths(axes: Axes, plan: dict[str, Any], names: bool = True) -> None:
    bounds = _bounds(plan)
    handles = []
    for key, colour, style in (("seq_len", COLOURS[4], "-"), ("batch_tokens", COLOURS[1], "--")):
        values = [stage[key] for stage in plan["stages"]]
        handles.append(
            axes.plot([0, *bounds[1:]], [values[0], *values], drawstyle="steps-pre", color=colour, ls=style)[0]
        )
    axes.set_yscale("log", base=2)
    values = sorted({stage[key] for stage in plan["stages"] for key in ("seq_len", "batch_tokens")})
    ticks = values[:1]
    for value in values[1:]:
        if math.log(value / ticks[-1]) >= _LEAST_GAP * math.log(4 * values[-1] / values[0]):
            ticks.append(value)
    axes.set_yticks(ticks, [quantity(value) for value in ticks])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set(ylabel="tokens", ylim=(values[0] / 2, values[-1] * 2))
    axes.legend(handles, ["in a row", "in a batch"], **_LEGEND)
    _mark_stages(axes, plan, names)


def _rope(axes: Axes, plan: dict[str, Any], names: bool = True) -> None:
    stages = [stage for stage in plan["stages"] if stage["rope"] is not None and stage["rope"]["ranges"]]
    for row, stage in enumerate(stages):
        for one in stage["rope"]["ranges"]:
            axes.barh([row], [one["last"] - one["first"] + 1], 0.7, left=one["first"], color=_KINDS[one["kind"]])
    labels = [f"{stage['name']} ({quantity(stage['seq_len'])})" for stage in stages]
    axes.set_yticks(range(len(stages)), labels)
    axes.invert_yaxis()
    axes.margins(x=0)
    axes.grid(axis="y", visible=False)
    axes.set(xlabel="pair of dimensions, from the fastest to the slowest")
    axes.legend([Patch(color=colour) for colour in _KINDS.values()], list(_KINDS), **_LEGEND)


Panel = Callable[[Axes, dict[str, Any], bool], None]


def panels(plan: dict[str, Any]) -> list[tuple[str, Panel, float]]:
    """Title, drawing function and height in inches of each panel that the plan has the numbers for."""
    chosen: list[tuple[str, Panel, float]] = []
    if all(stage.get("timeline") for stage in plan["stages"]):
        chosen.append(("Mixture over tokens", _mixture, 2.6))
    chosen.append(("Learning rate", _learning_rate, 1.9))
    chosen.append(("Length of rows and batches", _lengths, 1.6))
    ropes = [stage for stage in plan["stages"] if stage["rope"] is not None and stage["rope"]["ranges"]]
    if ropes:
        chosen.append(("RoPE at the length of each stage", _rope, 1.0 + 0.28 * len(ropes)))
    return chosen


def figure(plan: dict[str, Any]) -> Figure:
    """All panels beneath each other; those over tokens share their axis."""
    chosen = panels(plan)
    heights = [height for *_, height in chosen]
    result = Figure(figsize=(_WIDTH, sum(heights) + 0.6), layout="constrained")
    over_tokens: Axes | None = None
    grid = result.add_gridspec(len(chosen), 1, height_ratios=heights)
    last = max(number for number, (_, draw, _) in enumerate(chosen) if draw is not _rope)
    for number, (_, draw, _) in enumerate(chosen):
        axes = result.add_subplot(grid[number], sharex=None if draw is _rope else over_tokens)
        draw(axes, plan, number == 0)
        if draw is _rope:
            continue
        over_tokens = over_tokens or axes
        axes.tick_params(labelbottom=number == last)
        if number == last:
            axes.set_xlabel("tokens")
    return result


def write_png(plan: dict[str, Any], handle: IO[bytes]) -> None:
    """The figure as a PNG on white."""
    with matplotlib.rc_context(STYLE):
        figure(plan).savefig(handle, format="png", dpi=120)


def svgs(plan: dict[str, Any]) -> list[tuple[str, str]]:
    """Title and SVG element of each panel."""
    found = []
    with matplotlib.rc_context(STYLE):
        for title, draw, height in panels(plan):
            one = Figure(figsize=(_WIDTH * 0.8, height + 0.5), layout="constrained")
            axes = one.add_subplot()
            draw(axes, plan, True)
            if draw is not _rope:
                axes.set_xlabel("tokens")
            found.append((title, svg(one, title.lower().replace(" ", "-"))))
    return found
