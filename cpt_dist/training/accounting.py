"""What was read, source by source, held against the plan at every checkpoint.

The plan says how many samples each source gives up to any n; the batches say how many rows of each source went through
the model. The two are counted in different places, so a slip in order, loader or ranks cannot stay unseen. Nothing is
corrected here.
"""

from __future__ import annotations

from typing import Any

from cpt_dist.training.run import Run


class AccountingError(RuntimeError):
    """What was read is not what the plan says: a defect, so no checkpoint is made from it."""


def checked_accounts(run: Run) -> dict[str, dict[str, Any]]:
    """Source -> samples planned (as the shares ask, a fraction) and realised, tokens realised, what was
    skipped because it was taken down, and epochs by seq_len.

    The same on every rank. Raises AccountingError, before the checkpoint is written, with each source whose realised
    samples differ from the order's count.
    """
    expected = run.order.counts(run.position).tolist()
    names = run.order.source_names
    wrong = [
        f"source '{name}': {read} samples were read in {run.step} steps, but the plan has {planned}"
        for name, read, planned in zip(names, run.totals.samples_by_source, expected, strict=True)
        if read != planned
    ]
    if wrong:
        last = run.store.steps()
        raise AccountingError(f"{'; '.join(wrong)}. No checkpoint is made from this; checkpoints before it: {last}")
    asked, epochs = run.order.planned_samples(run.position).tolist(), run.order.epochs(run.position)
    return {
        name: {
            "planned_samples": asked[number],
            "samples": run.totals.samples_by_source[number],
            "tokens": run.totals.input_tokens_by_source[number],
            "skipped_pieces": run.totals.skipped_pieces_by_source[number],
            "skipped_tokens": run.totals.skipped_tokens_by_source[number],
            "epochs": {str(length): done for length, done in epochs[name].items()},
        }
        for number, name in enumerate(names)
    }
