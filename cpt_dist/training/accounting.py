"""What was read, source by source and stratum by stratum, held against the plan at every checkpoint.

The plan says how many samples each of them gives up to any n; the batches say how many rows and tokens went through
the model. The two are counted in different places, so a slip in order, loader or ranks cannot stay unseen. Nothing is
corrected here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from cpt_dist.data.order import SampleOrder
from cpt_dist.data.view_names import source_of
from cpt_dist.training.run import Run


class AccountingError(RuntimeError):
    """What was read is not what the plan says: a defect, so no checkpoint is made from it."""


def checked_accounts(run: Run) -> dict[str, dict[str, Any]]:
    """Source -> what was planned and what was read of it; the same on every rank.

    Planned is what the shares ask for, a fraction: `planned_samples`, `planned_tokens`, `planned_padding`. Read are
    `samples`, `tokens`, `loss_tokens` (those that were predicted; None where an older checkpoint didn't count them),
    `padding` (tokens by which rows were shorter than seq_len; they were not computed), what was skipped because it was
    taken down, and `epochs` by seq_len. Samples that the ledger skips are in none of them. A source with strata or
    generations has them beneath, under `strata`, and their sums. Raises AccountingError, before the checkpoint is
    written, with each whose samples differ from the order's count or whose tokens are none that such rows can hold.
    """
    _check(run)
    order, totals, n = run.order, run.totals, run.position
    without = order.skipped.without
    asked, full = without(order.planned_samples, n).tolist(), without(order.tokens_of_full_rows, n).tolist()
    full_asked = without(partial(order.tokens_of_full_rows, planned=True), n).tolist()
    tokens_of = without(lambda at: np.array([order.planned_tokens(at)[name] for name in order.source_names]), n)
    tokens_asked = dict(zip(order.source_names, tokens_of.tolist(), strict=True))
    loss_tokens: Sequence[int | None] = totals.target_tokens_by_source or [None] * len(order.source_names)
    views = {
        name: {
            "planned_samples": asked[number],
            "samples": totals.samples_by_source[number],
            "planned_tokens": tokens_asked[name],
            "tokens": totals.input_tokens_by_source[number],
            "loss_tokens": loss_tokens[number],
            "planned_padding": full_asked[number] - tokens_asked[name],
            "padding": int(full[number])
            - totals.input_tokens_by_source[number]
            - totals.skipped_tokens_by_source[number],
            "skipped_pieces": totals.skipped_pieces_by_source[number],
            "skipped_tokens": totals.skipped_tokens_by_source[number],
            "epochs": _read_epochs(order, partial(_epochs_of, order, name), n),
        }
        for number, name in enumerate(order.source_names)
    }
    return {
        source: _source_account(run, source, {name: views[name] for name in views if source_of(name) == source})
        for source in dict.fromkeys(source_of(name) for name in views)
    }


def _source_account(run: Run, source: str, views: dict[str, dict[str, Any]]) -> dict[str, Any]:
    if list(views) == [source]:
        return views[source]
    result: dict[str, Any] = {}
    for key in next(iter(views.values())):
        values = [view[key] for view in views.values()]
        if key != "epochs":
            result[key] = None if None in values else sum(values)
    epochs = _read_epochs(run.order, lambda n: run.order.source_epochs(source, n), run.position)
    return {**result, "epochs": epochs, "strata": views}


def _epochs_of(order: SampleOrder, name: str, n: int) -> Mapping[Any, float]:
    return order.epochs(n)[name]


def _read_epochs(order: SampleOrder, epochs: Callable[[int], Mapping[Any, float]], n: int) -> dict[str, float]:
    """`epochs(n)`, a number for each key, without what skipped samples give to it."""
    read = {str(key): number for key, number in epochs(n).items()}
    for start, stop in order.skipped.before(n):
        before = epochs(start)
        for key, number in epochs(stop).items():
            read[str(key)] -= number - before.get(key, 0.0)
    return read


def _check(run: Run) -> None:
    order, totals, n = run.order, run.totals, run.position
    full = order.skipped.without(order.tokens_of_full_rows, n).tolist()
    wrong = [
        f"source '{name}': {read} samples were read in {run.step} steps, but the plan has {planned}"
        for name, read, planned in zip(
            order.source_names, totals.samples_by_source, order.read_counts(n).tolist(), strict=True
        )
        if read != planned
    ]
    for number, name in enumerate(order.source_names):
        tokens = totals.input_tokens_by_source[number]
        predicted = totals.target_tokens_by_source[number] if totals.target_tokens_by_source else 0
        skipped = totals.skipped_tokens_by_source[number]
        if not predicted <= tokens <= full[number] - skipped:
            wrong.append(
                f"source '{name}': {tokens} tokens, {predicted} of them predicted, and {skipped} skipped ones were "
                f"read in rows that hold {int(full[number])}"
            )
    if wrong:
        last = run.store.steps()
        raise AccountingError(f"{'; '.join(wrong)}. No checkpoint is made from this; checkpoints before it: {last}")
