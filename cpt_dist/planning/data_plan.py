"""The dry run of the data: what a run will read, computed from the sources' manifests by the run's own sample order.

No model and no token is read, so it runs anywhere in seconds, before any GPU hour is spent. Nothing is estimated: the
numbers are those of the order that training follows. It prints nothing (`data_report.py` does that).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cpt_dist.config import CptConfig, parse_quantity
from cpt_dist.data.best_fit import BestFit
from cpt_dist.data.length_counts import share_below
from cpt_dist.data.long_documents import short_share_problems
from cpt_dist.data.order import SampleOrder
from cpt_dist.data.plans import RowsKey, make_plan
from cpt_dist.data.remote import source_folder
from cpt_dist.data.run_order import sample_order, stages_of_run
from cpt_dist.data.shards import Source, read_manifest, tokenizer_fingerprint
from cpt_dist.data.view_names import by_source, parse_view, parted, source_of, with_strata
from cpt_dist.data.views import views_of
from cpt_dist.errors import UserError
from cpt_dist.length_upsampling import length_factors
from cpt_dist.model.folder import read_model_config
from cpt_dist.model.rope import stage_trained_positions
from cpt_dist.plans_of_run import all_stages
from cpt_dist.schedules import learning_rate, stage_schedules

MANY_EPOCHS = 4
"""Repeats up to here are worth nearly as much as new text (Muennighoff et al., arXiv 2305.16264)."""
NUM_POINTS = 10
"""Rows of a stage's timeline."""
NUM_RATES = 200
"""Steps of a stage whose learning rate is in the plan."""
_SHORT_ROWS = 0.5
_NEARLY_ALL_JOINED = 0.95


def plan_data(config: CptConfig) -> dict[str, Any]:
    """The plan as JSON values.

    Raises UserError with every source that is not complete or was made with another tokenizer than `data.tokenizer`
    (which is compared where that folder is on this machine), and what the sample order refuses.
    """
    views = views_of(open_manifests(config), config.data.sources, all_stages(config))
    order = sample_order(config, views)
    epochs = {stage.name: stage.epochs for stage in all_stages(config)}
    config = replace(config, stages=stages_of_run(config, views))
    by_name = {view.name: view for view in views}
    trained = _trained_positions(config)
    stages = [
        {**_stage(config, order, by_name, index, trained[index]), "epochs_asked": epochs[stage.name]}
        for index, stage in enumerate(order.stages)
    ]
    return {
        "kind": "data",
        "seed": config.seed,
        "order": order.fingerprint,
        "total": {
            "steps": sum(stage["steps"] for stage in stages),
            "samples": order.num_samples,
            "tokens": sum(s["tokens"] for stage in stages for s in stage["sources"].values()),
        },
        "sources": {
            name: _source(name, [view for view in views if source_of(view.name) == name], order, stages)
            for name in dict.fromkeys(source_of(view.name) for view in views)
        },
        "stages": stages,
        "warnings": [*_warnings(config, views, stages), *_length_warnings(config, order, views, trained, stages)],
    }


def _trained_positions(config: CptConfig) -> list[int | None]:
    """Of each stage the length that the base model was trained at; None where there is no config.json to say it."""
    try:
        return stage_trained_positions(read_model_config(config.model.path), config.stages)
    except UserError:
        return [None] * len(config.stages)


def open_manifests(config: CptConfig) -> list[Source]:
    """The sources that stages read, in the order of `data.sources`, without touching their shards."""
    used = {name for stage in all_stages(config) for name in stage.mixture}
    tokenizer = Path(config.data.tokenizer)
    expected = tokenizer_fingerprint(tokenizer) if (tokenizer / "tokenizer.json").is_file() else None
    sources, problems = [], []
    for name in config.data.sources:
        if name not in used:
            continue
        folder = source_folder(config.data, name)
        try:
            source = Source(folder, read_manifest(folder))
        except UserError as error:
            problems += error.problems
            continue
        made_with = source.manifest["tokenizer"]["fingerprint"]
        if expected not in (None, made_with):
            problems.append(
                f"source '{name}': its shards were made with tokenizer {made_with}, not {expected} of '{tokenizer}'; "
                "use that tokenizer, or another data.shards and run launch/prepare.py"
            )
        sources.append(source)
    if problems:
        raise UserError(problems)
    return sources


def _source(name: str, views: list[Source], order: SampleOrder, stages: list[dict[str, Any]]) -> dict[str, Any]:
    """A source, with its strata and generations beneath where it has them."""
    parts = {view.name: _view(view, order, stages) for view in views}
    tokens_read = sum(stage["sources"][name]["tokens"] for stage in stages if name in stage["sources"])
    tokens = sum(part["tokens"] for part in parts.values())
    generations = {parse_view(view.name).generation: view for view in views}.values()
    return {
        "role": views[0].role,
        "licence": views[0].manifest["licence"],
        "shards": sum(len(view.shard_tokens) for view in generations),
        "documents": sum(part["documents"] for part in parts.values()),
        "tokens": tokens,
        "held_out_documents": sum(view.manifest["counts"]["held_out"] for view in generations),
        "tokens_read": tokens_read,
        "epochs": tokens_read / max(1, tokens),
        "epochs_by_rows": order.source_epochs(name, order.num_samples),
        **({} if list(parts) == [name] else {"strata": parts}),
    }


def _view(view: Source, order: SampleOrder, stages: list[dict[str, Any]]) -> dict[str, Any]:
    found = [_view_of_stage(stage, view.name) for stage in stages]
    tokens, tokens_read = view.num_tokens, sum(one["tokens"] for one in found if one is not None)
    epochs = order.epochs(order.num_samples)[view.name]
    return {
        "documents": view.num_documents,
        "tokens": tokens,
        "tokens_read": tokens_read,
        "epochs": tokens_read / max(1, tokens),
        "epochs_by_rows": {str(length): done for length, done in epochs.items()},
    }


def _view_of_stage(stage: dict[str, Any], view: str) -> dict[str, Any] | None:
    """What a stage reads of a stratum, or of a source without; None where it doesn't read it."""
    source: dict[str, Any] = stage["sources"].get(source_of(view), {})
    found: dict[str, Any] | None = source.get("strata", {source_of(view): source} if source else {}).get(view)
    return found


def _stage(
    config: CptConfig, order: SampleOrder, sources: dict[str, Source], index: int, trained: int | None
) -> dict[str, Any]:
    plan, stage = order.stages[index], config.stages[index]
    start, end = order.stage_starts[index], order.stage_starts[index + 1]
    schedule = stage_schedules(config)[index]
    samples = order.counts(end) - order.counts(start)
    tokens, asked = (
        {name: after - before for (name, after), before in zip(f(end).items(), f(start).values(), strict=True)}
        for f in (order.counted_tokens, order.planned_tokens)
    )
    all_tokens, all_asked = (max(1.0, sum(values.values())) for values in (tokens, asked))
    before = sum(earlier.num_steps for earlier in order.stages[:index])
    read = {}
    for number, name in enumerate(order.source_names):
        if source_of(name) not in plan.mixture:
            continue
        so_far = order.epochs(end)[name][plan.rows_key]
        packing = packing_summary(sources[name], plan.seq_len, plan.packing)
        read[name] = {
            **packing,
            "samples": int(samples[number]),
            "tokens": round(tokens[name]),
            "share": tokens[name] / all_tokens,
            "share_asked": asked[name] / all_asked,
            "epochs": int(samples[number]) / max(1, packing["rows"]),
            "epochs_so_far": so_far,
            "unseen_share": max(0.0, 1.0 - so_far),
        }
    _count_by_length(read, sources, plan.seq_len, trained)
    return {
        "name": plan.name,
        "seq_len": plan.seq_len,
        "packing": plan.packing,
        "positions": stage.positions,
        "batch_samples": plan.batch_samples,
        "steps": plan.num_steps,
        "samples": plan.num_samples,
        "tokens_asked": parse_quantity(stage.tokens or "", "tokens"),
        "quota_error_samples": order.error_bound(index),
        "schedule": schedule.name,
        "warmup_steps": schedule.warmup * plan.num_steps,
        "long_data": _long_data(config, read, trained),
        "sources": _with_strata(order, read, plan.rows_key, end),
        "timeline": timeline(order, index, lambda progress: learning_rate(schedule, progress)),
        "learning_rates": [
            [before + step, learning_rate(schedule, step / plan.num_steps)]
            for step in sorted({1 + (plan.num_steps - 1) * at // (NUM_RATES - 1) for at in range(NUM_RATES)})
        ],
    }


def _count_by_length(
    read: dict[str, dict[str, Any]], sources: dict[str, Source], seq_len: int, trained: int | None
) -> None:
    """Put into each record the tokens of documents shorter than the rows and than the trained length.

    They are None where the bounds of documents are needed and a shard isn't there, or no trained length is known.
    """
    for key, length in (("joined_tokens", seq_len), ("short_tokens", trained)):
        try:
            shares = {name: share_below(sources[name], length) if length is not None else None for name in read}
        except UserError:
            shares = dict.fromkeys(read)
        for name, record in read.items():
            share = shares[name]
            record[key] = None if share is None else round(record["tokens"] * share)


def _long_data(config: CptConfig, read: dict[str, dict[str, Any]], trained: int | None) -> dict[str, Any]:
    """Shares of the stage's tokens in documents that were joined to fill rows, and in short ones."""
    total = max(1, sum(record["tokens"] for record in read.values()))
    found: dict[str, Any] = {"trained_positions": trained, "min_short_share": config.long_data.min_short_share}
    for key in ("joined", "short"):
        values = [record[f"{key}_tokens"] for record in read.values()]
        found[f"{key}_share"] = None if None in values else sum(values) / total
    return found


def _length_warnings(
    config: CptConfig,
    order: SampleOrder,
    views: list[Source],
    trained: list[int | None],
    stages: list[dict[str, Any]],
) -> list[str]:
    """What training refuses for too few short documents; long rows, and length upsampling, without long documents."""
    try:
        found = short_share_problems(order, views, trained, config.long_data.min_short_share)
    except UserError:
        found = []
    for record in stages:
        length, joined = record["long_data"]["trained_positions"], record["long_data"]["joined_share"]
        if joined is not None and length is not None and record["seq_len"] > length and joined > _NEARLY_ALL_JOINED:
            found.append(
                f"stage '{record['name']}': {joined:.1%} of its tokens are joined: there are next to no documents "
                f"of {record['seq_len']} tokens, so little can be learned at that distance; lower seq_len, add longer "
                "documents or raise their share by length_upsampling"
            )
    tokens = {view.name: view.num_tokens for view in views}
    for stage in config.stages:
        for name, entry in stage.mixture.items():
            if length_factors(entry) and len([one for one, n in tokens.items() if source_of(one) == name and n]) < 2:
                found.append(
                    f"stage '{stage.name}': length_upsampling of source '{name}' changes nothing, as all of its "
                    "documents lie on one side of its min_tokens"
                )
    return found


def _with_strata(order: SampleOrder, read: dict[str, Any], rows_key: RowsKey, end: int) -> dict[str, Any]:
    """What a stage reads of each source; means and epochs of one with strata are those of all its rows."""
    result = with_strata(read)
    for name, record in result.items():
        if "strata" not in record:
            continue
        views, rows = record["strata"].values(), max(1, record["rows"])
        for key in ("mean_row_tokens", "unseen_share", "utilisation"):
            record[key] = sum(view[key] * view["rows"] for view in views) / rows
        record["epochs"] = record["samples"] / rows
        record["epochs_so_far"] = order.source_epochs(name, end)[str(rows_key)]
    return result


def packing_summary(source: Source, seq_len: int, packing: str) -> dict[str, Any]:
    """Rows of a source at `seq_len`, and what packing costs: padding, tokens left out, documents cut at most.

    Nothing is padded or left out; `utilisation` is the share of the rows' places that hold a token. Concatenation
    cuts a document where a row ends within it, so there are at most as many cuts as borders between two rows of a
    shard; best fit reads the documents' bounds (no tokens) and counts exactly, also by where the cuts lie.
    """
    plan = make_plan(source, seq_len, packing)
    cuts = plan.num_rows - int(np.count_nonzero(plan.rows_per_shard))
    exact = plan.count_cuts(source) if isinstance(plan, BestFit) else None
    return {
        "rows": plan.num_rows,
        "utilisation": plan.num_tokens / max(1, plan.num_rows * seq_len),
        "mean_row_tokens": plan.num_tokens / max(1, plan.num_rows),
        "padding_tokens": 0,
        "truncated_tokens": source.num_tokens - plan.num_tokens,
        "cuts_at_most": sum(exact) if exact else cuts,
        **({f"cuts_at_{level}": number for level, number in exact._asdict().items()} if exact else {}),
    }


def timeline(order: SampleOrder, index: int, rate: Callable[[float], float]) -> list[dict[str, Any]]:
    """The stage in at most NUM_POINTS spans of whole steps: shares of tokens planned in each, and its last rate."""
    plan, start = order.stages[index], order.stage_starts[index]
    before_stage = sum(stage.num_steps for stage in order.stages[:index])
    num_points = min(NUM_POINTS, plan.num_steps)
    steps = [plan.num_steps * point // num_points for point in range(num_points + 1)]
    planned = [order.planned_tokens(start + step * plan.batch_samples) for step in steps]
    points = []
    for point in range(num_points):
        members = order.layout.members(plan.mixture)
        span = {name: planned[point + 1][name] - planned[point][name] for name in members}
        total = sum(span.values())
        shares = {name: value / total for name, value in span.items()}
        strata = {name: shares[name] for name in parted(members)}
        points.append(
            {
                "progress": [steps[point] / plan.num_steps, steps[point + 1] / plan.num_steps],
                "steps": [before_stage + steps[point] + 1, before_stage + steps[point + 1]],
                "learning_rate": rate(steps[point + 1] / plan.num_steps),
                "shares": by_source(shares),
                **({"strata": strata} if strata else {}),
            }
        )
    return points


def _warnings(config: CptConfig, views: list[Source], stages: list[dict[str, Any]]) -> list[str]:
    names = [source_of(view.name) for view in views]
    found = [
        f"source '{name}' is never read: no stage's mixture names it"
        for name in config.data.sources
        if name not in names
    ]
    for view in views:
        name = view.name
        readings = [(stage, read) for stage in stages if (read := _view_of_stage(stage, name)) is not None]
        if not any(reading["samples"] for _, reading in readings):
            found.append(f"source '{name}' is never read: its shares give it no sample")
        for length, packing in sorted({(stage["seq_len"], stage["packing"]) for stage, _ in readings}):
            alike = [one for stage, one in readings if (stage["seq_len"], stage["packing"]) == (length, packing)]
            epochs = max(reading["epochs_so_far"] for reading in alike)
            if epochs > MANY_EPOCHS:
                found.append(
                    f"source '{name}' is read {epochs:.1f} times at seq_len {length}: beyond about {MANY_EPOCHS} "
                    "epochs a repeated token is worth clearly less than a new one (arXiv 2305.16264); lower its share "
                    "or the stage's tokens, or add text"
                )
            short = alike[0]
            if short["rows"] and short["mean_row_tokens"] < _SHORT_ROWS * length:
                found.append(
                    f"source '{name}' has rows of {short['mean_row_tokens']:.0f} tokens on average at seq_len "
                    f"{length}, as its shards are small; prepare it with a larger data.shard_tokens"
                )
    for name in dict.fromkeys(names):
        if not any(view.manifest["counts"]["held_out"] for view in views if source_of(view.name) == name):
            found.append(f"source '{name}' has no held-out documents: what is gained or forgotten on it stays unknown")
    for stage in stages:
        if 0 < stage["warmup_steps"] < 1:
            found.append(
                f"stage '{stage['name']}' has {stage['steps']} steps, so its warm-up is {stage['warmup_steps']:.2g} of "
                "a step: the first step takes the full learning rate; raise schedule.warmup or the stage's tokens"
            )
        elif stage["warmup_steps"] >= stage["steps"]:
            found.append(
                f"stage '{stage['name']}' is over before its warm-up is: the peak learning rate is reached in its last "
                "step only; lower schedule.warmup"
            )
    return found
