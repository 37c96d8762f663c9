"""Which way of packing a stage uses: from its name to the plan of a source's rows.

Plans are kept with the source that they are of, so that the order, the loader and whoever asks next share one. Nothing
is packed here (`packing.py`, `best_fit.py`).
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from cpt_dist.config import CONCAT
from cpt_dist.data.best_fit import BEST_FIT_VERSION, BestFit
from cpt_dist.data.packing import ConcatAndChunk, PackPlan

PackKey = int | str
"""Names a set of rows of a source: the seq_len itself for concat, else packing, its version and the seq_len."""

_plans: WeakKeyDictionary[Any, dict[PackKey, PackPlan]] = WeakKeyDictionary()


def pack_key(packing: str, seq_len: int) -> PackKey:
    """The key of the rows that `packing` makes at `seq_len`; two keys mean two sets of rows, counted each from 0."""
    return seq_len if packing == CONCAT else f"{packing}/{BEST_FIT_VERSION}:{seq_len}"


def pack_plan(source: Any, packing: str, seq_len: int, cache: bool = False) -> PackPlan:
    """The plan of `source` (a `cpt_dist.data.shards.Source` or its like), made once for each source object.

    `cache`: keep a best-fit plan beside the shards too (`BestFit`). Raises UserError for a damaged shard.
    """
    kept = _plans.setdefault(source, {})
    key = pack_key(packing, seq_len)
    if key not in kept:
        concat = packing == CONCAT
        kept[key] = ConcatAndChunk(source.shard_tokens, seq_len) if concat else BestFit(source, seq_len, cache)
    return kept[key]
