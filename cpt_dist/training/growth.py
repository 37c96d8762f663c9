"""A run that is taken up again after a source of its has grown: the new generation enters through the ledger.

What was read before stays what it was: the old generation keeps its rows and counts, the new one is a source of its
own to the order, from the resume on. What new generations are and how prepare makes them is in `cpt_dist/data`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from cpt_dist.config import CptConfig, StageConfig
from cpt_dist.data.gate_decision import forks
from cpt_dist.data.ledger_entry import Entry, LedgerEntry, entries_before_fork, generations_of, read_ledger
from cpt_dist.data.order import SampleOrder
from cpt_dist.data.run_order import sample_order, stages_of_run
from cpt_dist.data.shards import Source
from cpt_dist.data.stage_plan import StagePlan
from cpt_dist.data.view_names import parse_view
from cpt_dist.data.views import generations_in
from cpt_dist.errors import UserError
from cpt_dist.run_directory import RunDirectory
from cpt_dist.schedules import learning_rate, stage_schedules
from cpt_dist.training.forking import Parent, own_ledger


def sources_and_order(
    config: CptConfig, sources: list[Source], saved: Mapping[str, Any] | None, parent: Parent | None = None
) -> tuple[list[Source], SampleOrder, LedgerEntry | None]:
    """What the run reads, in which order, and the ledger entry that a source's growth since then makes.

    `sources` are all views that there are, `saved` the trainer.json of the newest checkpoint (None: there is none), or
    of that of `parent`, which the run is being forked from.
    Every rank comes to the same entry from the same files; none is written. Raises UserError where the saved run can't
    go on.
    """
    ledger = own_ledger(config, parent)
    if saved is None:
        return sources, sample_order(config, sources, ledger), None
    directory = RunDirectory(config.run_dir)
    sources, grown = new_generations(config, sources, saved, ledger)
    order = sample_order(config, sources, [*ledger, grown] if grown is not None else ledger)
    if parent is not None:
        order.check_past(saved["order"], parent.directory.read_order())
        _check_rates(config, sources, order, saved["order"])
        return sources, order, grown
    num_forks = int(saved.get("forks", 0))
    then = order
    if num_forks < len(forks(ledger)):  # saved before a gate forked the plan, which has the same samples up to there
        then = sample_order(config, sources, entries_before_fork(ledger, num_forks))
    then.check(saved["order"], directory.read_order())
    _check_rates(config, sources, order, saved["order"])
    return sources, order, grown


def _check_rates(config: CptConfig, sources: list[Source], order: SampleOrder, state: Mapping[str, Any]) -> None:
    """Refuse another length of the stage in progress where the learning rate would jump.

    A schedule is a function of the share of the stage that is done, so it is anchored anew by the length.
    """
    n, start = int(state["n"]), 0
    for index, length in enumerate(state.get("stage_samples", [])[: len(order.stages)]):
        stage = order.stages[index]
        if start < n <= start + length and length != stage.num_samples:
            stages = stages_of_run(config, sources, order.entries)
            schedule = stage_schedules(replace(config, stages=stages))[index]
            was = learning_rate(replace(schedule, covers=1.0), (n - start) / length)
            now = learning_rate(schedule, (n - start) / stage.num_samples)
            if abs(was - now) > 1e-9 * max(was, now):
                raise UserError(
                    f"stage '{stage.name}' had {length * stage.seq_len} tokens and has "
                    f"{stage.num_samples * stage.seq_len}; its learning rate would jump from {was:.3g} to "
                    f"{now:.3g}. Set it back and put the change into a new last stage, or lengthen it while its rate "
                    "is constant"
                )
        start += length


def saved_views(saved: Mapping[str, Any]) -> list[str]:
    """The views that a checkpoint counted, in their order; empty where it is of a version that didn't name them."""
    return list(saved.get("sources", saved.get("order", {}).get("sources", [])))


def new_generations(
    config: CptConfig, sources: Sequence[Source], saved: Mapping[str, Any], entries: Sequence[Entry] | None = None
) -> tuple[list[Source], LedgerEntry | None]:
    """The views that a saved run goes on with, and the ledger entry that lets new generations in.

    `entries` are the run's ledger (default: its file). The entry acts from the first step boundary at which neither a
    sample was read nor an entry acts. Where no step is left, the run ends as it was: the views are those without the
    new generations, and there is no entry.
    """
    entries = read_ledger(RunDirectory(config.run_dir).ledger) if entries is None else entries
    ledger = [one for one in entries if isinstance(one, LedgerEntry)]
    first = {(parse_view(source.name).source, 0) for source in sources}
    known = {parse_view(name)[:2] for name in saved_views(saved)} or first
    read = {source for source, _ in known}
    new = sorted(pair for pair in generations_in(sources) - known - generations_of(ledger) if pair[0] in read)
    if not new:
        return list(sources), None
    n_start = _free_boundary(
        stages_of_run(config, sources), max([int(saved["order"]["n"]), *(entry.n_start + 1 for entry in ledger)])
    )
    if n_start is None:
        return [source for source in sources if parse_view(source.name)[:2] not in new], None
    generations: dict[str, list[int]] = {}
    for source, number in new:
        generations.setdefault(source, []).append(number)
    tokens = {f"{s}@{g}": _tokens(sources, s, g) for s, g in new}
    names = ", ".join(f"'{name}' ({count:,} tokens)" for name, count in tokens.items())
    reason = f"the source has grown: {names} is read from here on, in proportion to tokens"
    return list(sources), LedgerEntry(n_start, {}, reason, {"tokens": tokens}, generations)


def _free_boundary(stages: Sequence[StageConfig], n: int) -> int | None:
    """The first step boundary at or behind sample n; None behind the last step."""
    start = 0
    for stage in map(StagePlan.from_config, stages):
        if n < start + stage.num_samples:
            boundary = start + -(-max(0, n - start) // stage.batch_samples) * stage.batch_samples
            if boundary < start + stage.num_samples:
                return boundary
        start += stage.num_samples
    return None


def _tokens(sources: Sequence[Source], source: str, generation: int) -> int:
    views = [one for one in sources if parse_view(one.name)[:2] == (source, generation)]
    return int(views[0].manifest["tokens"])
