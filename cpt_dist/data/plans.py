"""From the name of a way of packing to the plan of a source's rows: the only place that chooses between plans.

A plan is kept with the source that it is of, so that the order, the loader and whoever asks next share one. Nothing is
packed here (`packing.py`).
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

from cpt_dist.data.packing import ConcatAndChunk, PackPlan, RowSource

_plans: WeakKeyDictionary[RowSource, dict[tuple[str, int], PackPlan]] = WeakKeyDictionary()


def make_plan(source: RowSource, seq_len: int, packing: str = "concat") -> PackPlan:
    """The plan of a source's rows of `seq_len` tokens, made once for each source object.

    `packing` is a key of `PACKINGS`. Raises ValueError if seq_len < 1, and UserError for a damaged shard.
    """
    kept = _plans.setdefault(source, {})
    if (packing, seq_len) not in kept:
        kept[packing, seq_len] = PACKINGS[packing](source, seq_len)
    return kept[packing, seq_len]


PACKINGS = {"concat": ConcatAndChunk.of}
"""Name of a packing -> the function that makes the plan of a source and a length."""
