"""What was read, source by source and stratum by stratum, held against the plan at every checkpoint.

The plan says how many samples each of them gives up to any n; the batches say how many rows and tokens went through
the model. The two are counted in different places, so a slip in order, loader or ranks cannot stay unseen. Nothing is
corrected here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from cpt_dist.data.long_documents import planned_joined
from cpt_dist.data.order import RowsRead, SampleOrder
from cpt_dist.data.view_names import source_of
from cpt_dist.training.run import Run


class AccountingError(RuntimeError):
    """What was read is not what the plan says: a defect, so no checkpoint is made from it."""


def checked_accounts(run: Run) -> dict[str, dict[str, Any]]:
    """Source -> what was planned and what was read of it; the same on every rank.

    Planned is what the shares ask for, a fraction: `planned_samples`, and of mean rows `planned_tokens`,
    `planned_loss_tokens`, `planned_joined_tokens` and `planned_padding`. Read are `samples`, `tokens`, `loss_tokens`
    (those that were predicted; None where an older checkpoint didn't count them), `joined_tokens` (those of documents
    shorter than seq_len; None likewise), `padding` (tokens by which rows were shorter than seq_len; they were not
    computed), what was skipped because it was taken down, and `epochs` by seq_len. Samples that the ledger skips are in
    none of them. A source with strata or generations has them beneath, under `strata`, and their sums. Raises
    AccountingError, before the checkpoint is written, with each whose samples differ from the order's count, or whose
    tokens or loss tokens are none that such rows can hold: after whole epochs that is one number.
    """
    _check(run)
    order, totals, n = run.order, run.totals, run.position
    without = order.skipped.without
    asked, full = without(order.planned_samples, n).tolist(), without(order.tokens_of_full_rows, n).tolist()
    full_asked = without(partial(order.tokens_of_full_rows, planned=True), n).tolist()
    tokens_of = without(lambda at: np.array([order.planned_tokens(at)[name] for name in order.source_names]), n)
    tokens_asked = dict(zip(order.source_names, tokens_of.tolist(), strict=True))
    of_joined = partial(planned_joined, order, run.joined_shares)
    joined_asked = without(lambda at: np.array([of_joined(at)[name] for name in order.source_names]), n).tolist()
    joined = totals.joined_tokens_by_source
    loss_tokens: Sequence[int | None] = totals.target_tokens_by_source or [None] * len(order.source_names)
    views = {
        name: {
            "planned_samples": asked[number],
            "samples": totals.samples_by_source[number],
            "planned_tokens": tokens_asked[name],
            "tokens": totals.input_tokens_by_source[number],
            "planned_loss_tokens": tokens_asked[name] * targets / max(1, all_tokens),
            "loss_tokens": loss_tokens[number],
            "planned_padding": full_asked[number] - tokens_asked[name],
            "padding": int(full[number])
            - totals.input_tokens_by_source[number]
            - totals.skipped_tokens_by_source[number],
            "planned_joined_tokens": joined_asked[number],
            "joined_tokens": None if joined is None else joined[number],
            "skipped_pieces": totals.skipped_pieces_by_source[number],
            "skipped_tokens": totals.skipped_tokens_by_source[number],
            "epochs": _read_epochs(order, partial(_epochs_of, order, name), n),
        }
        for number, (name, targets, all_tokens) in enumerate(
            zip(order.source_names, run.epoch_targets, order.epoch_tokens, strict=True)
        )
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
    wrong = [
        f"source '{name}': {read} samples were read in {run.step} steps, but the plan has {planned}"
        for name, read, planned in zip(
            order.source_names, totals.samples_by_source, order.read_counts(n).tolist(), strict=True
        )
        if read != planned
    ]
    rows, without = order.rows_read(n), order.skipped.without
    full, missed = without(order.tokens_of_full_rows, n), order.tokens_of_full_rows(n)
    missed = missed - full  # what the steps that the ledger skips could have held
    for number, name in enumerate(order.source_names):
        tokens, skipped = totals.input_tokens_by_source[number], totals.skipped_tokens_by_source[number]
        least, most = _bounds(rows[name].values(), order.epoch_tokens[number])
        least, most = max(0, least - int(missed[number])), min(most, int(full[number]))
        fits, said = least <= tokens + skipped <= most, ""
        if totals.target_tokens_by_source is not None:
            predicted = totals.target_tokens_by_source[number]
            # A document that was taken down takes no more labels with it than it has tokens.
            fewest, largest = _bounds(rows[name].values(), run.epoch_targets[number])
            fewest, largest = max(0, fewest - int(missed[number]) - skipped), min(largest, tokens)
            fits = fits and fewest <= predicted <= largest
            said = f" ({predicted} of them predicted, of {fewest} to {largest} that can be)"
        if not fits:
            wrong.append(
                f"source '{name}': {tokens} tokens{said} and {skipped} skipped ones were read in rows that hold "
                f"{least} to {most}"
            )
    if wrong:
        last = run.store.steps()
        raise AccountingError(f"{'; '.join(wrong)}. No checkpoint is made from this; checkpoints before it: {last}")


def _bounds(rows: Iterable[RowsRead], total: int) -> tuple[int, int]:
    pairs = [read.bounds(total) for read in rows]
    return sum(least for least, _ in pairs), sum(most for _, most in pairs)
