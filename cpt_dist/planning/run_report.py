"""The preview of a run on a terminal, as plan.json, plan.png and plan.html. Nothing is computed here.

Terminal and page show the same tables, made once by `tables`; the page is one file without scripts or anything fetched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cpt_dist.files import atomic_write, write_json
from cpt_dist.planning.run_figures import quantity, shown_shares, svgs, write_png
from cpt_dist.report_files import template_environment

_NONE = "–"


@dataclass(frozen=True)
class PlanTable:
    """A table of texts: the first `words` columns are words, the others numbers."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    words: int = 1
    folded: bool = False
    """Shown on the page on demand, and not on the terminal."""


def _count(value: float | None) -> str:
    return _NONE if value is None else f"{value:,.0f}"


def _number(value: float | None, form: str = ".4g") -> str:
    return _NONE if value is None else f"{value:{form}}"


def tables(plan: dict[str, Any]) -> list[PlanTable]:
    """The tables that the plan has the numbers for."""
    makers: dict[str, list[Callable[[dict[str, Any]], PlanTable | None]]] = {
        "schedule": [_stages, _learning_rates, _saves, _settings],
        "rope": [_ropes],
        "all": [
            _stages,
            _learning_rates,
            _saves,
            _ropes,
            _settings,
            _mixture,
            _epochs,
            _lengths,
            _timeline,
            _alternatives,
        ],
    }
    made = [make(plan) for make in [*makers[plan["what"]], _alternatives]]
    return [table for table in made if table is not None]


def _stages(plan: dict[str, Any]) -> PlanTable:
    ranked = plan["world_size"] is not None
    columns = ["stage", "packing", "tokens", "steps", "of the run", "row", "batch", "rows"]
    columns += ["rows a rank", "accumulation"] if ranked else []
    rows = []
    for stage in plan["stages"]:
        row = [stage["name"], stage["packing"], quantity(stage["tokens"]), _count(stage["steps"])]
        row += [f"{stage['first_step']:,} – {stage['last_step']:,}", _count(stage["seq_len"])]
        row += [quantity(stage["batch_tokens"]), _count(stage["batch_samples"])]
        if ranked:
            row += [_count(stage["ranks"]["rows_of_a_rank"]), _count(stage["ranks"]["accumulation"])]
        rows.append(row)
    title = "stages" + (f", on {plan['world_size']:,} ranks" if ranked else "")
    return PlanTable(title, columns, rows, words=2)


def _saves(plan: dict[str, Any]) -> PlanTable:
    rows = []
    for stage in plan["stages"]:
        row = [stage["name"]]
        for key in ("checkpoints", "evaluations"):
            row += [_count(len(stage[key])), _steps(stage[key])]
        rows.append(row)
    columns = ["stage", "checkpoints", "after steps", "evaluations", "after steps"]
    return PlanTable("checkpoints and evaluations inside the job", columns, rows)


def _steps(steps: list[int]) -> str:
    """A few steps as they are, many by the first two and the last."""
    shown = steps if len(steps) <= 4 else [*steps[:2], None, steps[-1]]
    return ", ".join("…" if step is None else f"{step:,}" for step in shown) or _NONE


def _learning_rates(plan: dict[str, Any]) -> PlanTable:
    rows = []
    for stage in plan["stages"]:
        rate = stage["schedule"]
        row = [stage["name"], rate["name"], *[f"{rate[key]:.3g}" for key in ("first", "peak")]]
        rows.append([*row, _count(rate["peak_step"]), f"{rate['last']:.3g}", f"{rate['warmup_steps']:,.4g}"])
    columns = ["stage", "schedule", "first step", "highest", "at step", "last step", "warm-up steps"]
    return PlanTable("learning rate", columns, rows, words=2)


def _ropes(plan: dict[str, Any]) -> PlanTable | None:
    if all(stage["rope"] is None for stage in plan["stages"]):
        return None
    rows = []
    for stage in plan["stages"]:
        rope = stage["rope"]
        row = [stage["name"], rope["type"], rope["formula"], f"{rope['theta']:,.0f}", _number(rope["factor"])]
        row += [_count(rope["original"]), _count(stage["seq_len"]), _count(rope["max_positions"])]
        pairs = rope.get("pairs")
        row += [_count(pairs[kind]) if pairs else _NONE for kind in ("seen", "interpolated", "extrapolated")]
        rows.append(row)
    columns = ["stage", "type", "from", "theta", "factor", "original", "row", "declared"]
    title = "RoPE: pairs of dimensions at the length of the stage's rows"
    return PlanTable(title, [*columns, "seen", "interpolated", "extrapolated"], rows, words=3)


def _settings(plan: dict[str, Any]) -> PlanTable | None:
    names = list(dict.fromkeys(name for stage in plan["stages"] for name in stage["settings"]))
    if not names:
        return None
    rows = [[stage["name"], *[_text(stage["settings"].get(name)) for name in names]] for stage in plan["stages"]]
    return PlanTable("further settings of stages", ["stage", *names], rows, words=1 + len(names))


def _alternatives(plan: dict[str, Any]) -> PlanTable | None:
    if not plan["alternatives"]:
        return None
    rows = []
    for way in plan["alternatives"]:
        for stage in way["stages"] or []:
            rate, rope = stage["schedule"], stage["rope"]
            row = [way["way"], stage["name"], quantity(stage["tokens"]), _count(stage["steps"])]
            row += [f"{stage['first_step']:,} – {stage['last_step']:,}", _count(stage["seq_len"])]
            row += [quantity(stage["batch_tokens"]), rope["type"] if rope else _NONE, rate["name"]]
            rows.append([*row, *(f"{rate[key]:.3g}" for key in ("first", "peak", "last"))])
    columns = ["way", "stage", "tokens", "steps", "of the run", "row", "batch", "RoPE", "schedule"]
    columns += ["first rate", "highest", "last"]
    return PlanTable("where a gate forks the plan", columns, rows, words=2)


def _text(value: Any) -> str:
    if value is None or value == {}:
        return _NONE
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_text(one)}" for name, one in value.items() if one is not None)
    return ", ".join(map(_text, value)) if isinstance(value, (list, tuple)) else str(value)


def _mixture(plan: dict[str, Any]) -> PlanTable | None:
    if not all(stage["timeline"] for stage in plan["stages"]):
        return None
    names = list(
        dict.fromkeys(name for stage in plan["stages"] for point in stage["timeline"] for name in point["shares"])
    )
    rows = []
    for name in names:
        row = [name]
        for stage in plan["stages"]:
            if name not in stage["timeline"][0]["shares"]:
                row.append(_NONE)
                continue
            first, last = (stage["timeline"][at]["shares"][name] for at in (0, -1))
            row.append(f"{first:.1%}" if abs(first - last) < 5e-4 else f"{first:.1%} → {last:.1%}")
        rows.append(row)
    assumed = "" if plan["data"] is not None else " (of full rows, as no shards are known)"
    return PlanTable(f"mixture: share of tokens{assumed}", ["source", *[s["name"] for s in plan["stages"]]], rows)


def _epochs(plan: dict[str, Any]) -> PlanTable | None:
    if plan["data"] is None:
        return None
    columns = ["source", "role", "documents", "tokens", "tokens read", "epochs"]
    columns += [f"in {stage['name']}" for stage in plan["stages"]]
    rows = []
    for name, source in plan["data"]["sources"].items():
        row = [name, source["role"], *[_count(source[key]) for key in ("documents", "tokens", "tokens_read")]]
        row.append(f"{source['epochs']:.3g}")
        row += [f"{s['sources'][name]['epochs']:.3g}" if name in s["sources"] else _NONE for s in plan["stages"]]
        rows.append(row)
    return PlanTable("what is read of each source", columns, rows, words=2)


def _lengths(plan: dict[str, Any]) -> PlanTable | None:
    """What documents the rows of each stage are made of; left out where no shards tell."""
    if plan["data"] is None:
        return None
    rows = []
    for stage in plan["data"]["stages"]:
        known, total = stage["long_data"], sum(source["tokens"] for source in stage["sources"].values())
        shares = [known["joined_share"], known["short_share"]]
        row = [stage["name"], "all", _count(stage["seq_len"]), _count(known["trained_positions"]), _count(total)]
        rows.append([*row, *map(_share, shares)])
        for name, source in stage["sources"].items():
            for one, record in {name: source, **source.get("strata", {})}.items():
                tokens = [record["joined_tokens"], record["short_tokens"]]
                parts = [None if n is None else n / max(1, record["tokens"]) for n in tokens]
                rows.append(["", one, "", "", _count(record["tokens"]), *map(_share, parts)])
    columns = ["stage", "source", "row", "base trained at", "tokens", "joined", "short"]
    title = "documents behind the rows (joined: shorter than the row; short: than the base was trained at)"
    return PlanTable(title, columns, rows, words=2)


def _share(value: float | None) -> str:
    return _NONE if value is None else f"{value:.1%}"


def _timeline(plan: dict[str, Any]) -> PlanTable | None:
    if not all(stage["timeline"] for stage in plan["stages"]):
        return None
    names, shares = shown_shares(plan)
    points = [(stage, point) for stage in plan["stages"] for point in stage["timeline"]]
    rows = [
        [
            stage["name"],
            f"{point['steps'][0]:,} – {point['steps'][1]:,}",
            f"{point['learning_rate']:.3g}",
            *[f"{share[name]:.1%}" for name in names],
        ]
        for (stage, point), share in zip(points, shares, strict=True)
    ]
    return PlanTable("over time", ["stage", "steps", "learning rate after", *names], rows, folded=True)


def _facts(plan: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What, its number, and a remark: the head of the plan."""
    total = plan["total"]
    tokens = total["tokens"] if total["tokens"] is not None else total["tokens_of_full_rows"]
    yield "Tokens", quantity(tokens), "" if total["tokens"] is not None else "if every row is full"
    yield "Steps", _count(total["steps"]), f"{len(plan['stages'])} stage{'s' * (len(plan['stages']) > 1)}"
    yield "Checkpoints", _count(total["checkpoints"]), _kept(plan["keeps"])
    yield "Evaluations", _count(total["evaluations"]), "inside the job"
    if plan["distillation"] is not None:
        yield _distillation(plan["distillation"])


def _distillation(cost: dict[str, Any]) -> tuple[str, str, str]:
    number = _NONE if cost["extra_flops"] is None else f"+{cost['extra_flops']:.1%}"
    read = "an unknown part" if cost["share_of_tokens"] is None else f"{cost['share_of_tokens']:.1%}"
    weights = "" if cost["teacher_weights"] is None else f" of {quantity(cost['teacher_weights'])} weights"
    return "FLOPs of distillation", number, f"a teacher{weights} reads {read} of the tokens"


def _kept(keeps: dict[str, Any]) -> str:
    if not keeps["keep_last"]:
        return "all are kept"
    parts = [f"the last {keeps['keep_last']:,}"]
    if keeps["keep_every"]:
        parts.append(f"each {keeps['keep_every']:,}th step")
    if keeps["keep_best"]:
        parts.append(f"the best {keeps['keep_best']:,} by {keeps['keep_best_of']}")
    return f"{', '.join(parts)} are kept"


def print_table(made: PlanTable, console: Console) -> None:
    """A table on a terminal."""
    table = Table(title=Text(made.title), title_justify="left")
    for number, name in enumerate(made.columns):
        table.add_column(Text(name), justify="left" if number < made.words else "right", overflow="fold")
    for row in made.rows:
        table.add_row(*map(Text, row))
    console.print(table)


def print_run_plan(plan: dict[str, Any], console: Console) -> None:
    """The head, the tables, what is missing and the warnings."""
    console.print(
        "; ".join(f"{number} {what.lower()}{f' ({why})' if why else ''}" for what, number, why in _facts(plan))
    )
    for made in tables(plan):
        if not made.folded:
            print_table(made, console)
    for line in plan["missing"]:
        console.print(Text(f"missing: {line}", style="yellow"), soft_wrap=True)
    for warning in plan["warnings"]:
        console.print(Text(f"warning: {warning}", style="yellow"), soft_wrap=True)


def render_html(plan: dict[str, Any]) -> str:
    """plan.html of a plan of `plan_run`."""
    environment = template_environment("cpt_dist.planning", True, {})
    return environment.get_template("plan.html.j2").render(
        plan=plan,
        facts=list(_facts(plan)),
        tables=tables(plan),
        figures=[(title, Markup(one)) for title, one in svgs(plan)],
    )


def write_run_plan(plan: dict[str, Any], folder: str | Path) -> list[Path]:
    """Write plan.json, plan.png and plan.html into `folder` (made if needed), each whole; returns their paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in ("plan.json", "plan.png", "plan.html")]
    write_json(paths[0], plan)
    with atomic_write(paths[1]) as handle:
        write_png(plan, handle)
    with atomic_write(paths[2], "w") as handle:
        handle.write(render_html(plan))
    return paths
