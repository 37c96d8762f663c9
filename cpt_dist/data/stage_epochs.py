"""Stages whose length is given in epochs, resolved to tokens from what the sources hold.

The length follows from rows, as the sample order reads rows: a source with R rows that gives the share f of a stage's
samples is read once by R / f samples. A run keeps what it resolved (stages.json), so that a source which grows later
does not change a stage that has begun. Nothing here reads a token.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from cpt_dist.config import CptConfig, StageConfig, parse_quantity
from cpt_dist.data.layout import Layout
from cpt_dist.data.packing import RowSource
from cpt_dist.data.plans import make_plan
from cpt_dist.data.stage_counts import Knots
from cpt_dist.data.stage_plan import StagePlan
from cpt_dist.data.view_names import source_of
from cpt_dist.errors import UserError
from cpt_dist.plans_of_run import all_stages


def with_tokens(
    stages: Sequence[StageConfig],
    sources: Sequence[RowSource],
    kept: Path,
    as_read: Callable[[StageConfig], StageConfig] = lambda stage: stage,
) -> list[StageConfig]:
    """`stages` with the tokens of those that are given in epochs, which lose these.

    `as_read` gives a stage the mixture that the sample order reads it by.

    `kept` is the run's stages.json, whose tokens hold for a stage with the same epochs. Raises UserError with every
    stage that no length follows for.
    """
    resolved, problems = [], []
    before = read_stages(kept)
    for stage in stages:
        tokens = stage.tokens
        saved = before.get(stage.name, {})
        if stage.epochs is not None and saved.get("epochs") == _plain(stage.epochs):
            tokens = str(saved["tokens"])
        elif stage.epochs is not None:
            try:
                tokens = str(tokens_of_epochs(as_read(stage), sources))
            except UserError as error:
                problems += error.problems
        resolved.append(stage if stage.epochs is None else replace(stage, tokens=tokens, epochs=None))
    if problems:
        raise UserError(problems)
    return resolved


def read_stages(path: Path) -> dict[str, Any]:
    """Stage -> the epochs that its tokens were made from, and these; empty where no stage was given in epochs."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise UserError(
            f"'{path}' is no JSON ({error}); restore it from a copy, or write the stages in tokens"
        ) from error
    return found


def kept_stages(given: CptConfig, resolved: Sequence[StageConfig]) -> dict[str, Any]:
    """What stages.json keeps of the stages given in epochs, from the same with their tokens."""
    epochs = {stage.name: stage.epochs for stage in all_stages(given) if stage.epochs is not None}
    return {
        stage.name: {"epochs": _plain(epochs[stage.name]), "tokens": int(stage.tokens or 0)}
        for stage in resolved
        if stage.name in epochs
    }


def _plain(epochs: Any) -> Any:
    return {name: float(times) for name, times in epochs.items()} if isinstance(epochs, Mapping) else float(epochs)


def tokens_of_epochs(stage: StageConfig, sources: Sequence[RowSource]) -> int:
    """Tokens of whole steps in which no source is read more often than `stage.epochs` asks; at least one step.

    A number counts the domain sources together. Of a mapping the source that is through first ends the stage.
    """
    batch_tokens = parse_quantity(stage.batch_tokens, f"stage '{stage.name}' batch_tokens")
    plan = StagePlan.from_config(replace(stage, tokens=str(batch_tokens), epochs=None))
    views = [source for source in sources if source_of(source.name) in stage.mixture]
    packs = {view.name: make_plan(view, stage.seq_len, stage.packing) for view in views}
    layout = Layout({name: pack.num_tokens for name, pack in packs.items()})
    members = layout.members(plan.mixture)
    if missing := [name for name in members if name not in packs]:
        raise UserError(f"stage '{stage.name}' epochs: source '{name}' is not prepared" for name in missing)
    rates = [Fraction(packs[name].num_rows, max(1, packs[name].num_tokens)) for name in members]
    shares = dict(zip(members, mean_shares_of_samples(layout.knots(plan), rates), strict=True))
    roles = {view.name: getattr(view, "role", "") for view in views}
    if isinstance(stage.epochs, Mapping):
        asked = [([m for m in members if source_of(m) == name], times) for name, times in stage.epochs.items()]
    else:
        asked = [([m for m in members if roles[m] == "domain"], stage.epochs)]
    samples = []
    for group, times in asked:
        share = sum((shares[name] for name in group), start=Fraction(0))
        rows = sum(packs[name].num_rows for name in group)
        if not share or not rows:
            what = f"source '{source_of(group[0])}' has" if group else "its domain sources have"
            raise UserError(f"stage '{stage.name}' epochs: {what} no rows or no share; give tokens instead")
        samples.append(Fraction(float(times)) * rows / share)
    return max(1, int(min(samples) // plan.batch_samples)) * batch_tokens


def mean_shares_of_samples(knots: Knots, rates: Sequence[Fraction]) -> list[Fraction]:
    """What share of a stage's samples each source gives, [source], when its shares of tokens are `knots`.

    `rates` are samples a token, [source]. Weights of samples lie on straight lines between the knots, each normalised,
    so the mean is the area of trapezia (`data/stage_counts.py`).
    """
    progress, shares = list(knots[0]), [list(row) for row in knots[1]]
    if progress[-1] < 1:
        progress, shares = [*progress, 1.0], [*shares, shares[-1]]
    rows = []
    for row in shares:
        weights = [Fraction(share) * rate for share, rate in zip(row, rates, strict=True)]
        total = sum(weights)
        rows.append([weight / total if total else Fraction(0) for weight in weights])
    areas = [Fraction(0)] * len(rates)
    for number in range(len(progress) - 1):
        width = Fraction(progress[number + 1]) - Fraction(progress[number])
        pairs = zip(rows[number], rows[number + 1], strict=True)
        areas = [area + width * (a + b) / 2 for area, (a, b) in zip(areas, pairs, strict=True)]
    return areas
