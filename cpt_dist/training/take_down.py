"""The user's take-down list becomes an entry of the ledger, once, where a start or a resume first sees it.

Rank 0 reads the list and writes; all ranks get the same new order. A document that is no longer on the list stays out:
a take-down is for good, and the ledger, not the list, says what holds.
"""

from __future__ import annotations

import numpy as np

from cpt_dist.data.ledger_entry import write_ledger
from cpt_dist.data.masking import TakenDown
from cpt_dist.data.run_order import sample_order
from cpt_dist.data.shards import Source, read_held_out
from cpt_dist.data.take_down import TakeDown, read_list
from cpt_dist.data.view_names import source_of
from cpt_dist.errors import UserError
from cpt_dist.training.first_rank import on_first
from cpt_dist.training.run import Run


def take_down(run: Run) -> None:
    """Let `data.take_down` act from the run's position on; called on every rank, once the position is known.

    Raises UserError, on every rank alike, for a list that can't be read.
    """
    if run.config.data.take_down is None:
        return
    entry, problems = on_first(run.world, lambda: _decided(run))
    if problems:
        raise UserError(problems)
    if entry is not None:
        run.order = sample_order(run.config, run.sources, [*run.order.entries, entry])


def _decided(run: Run) -> tuple[TakeDown | None, list[str]]:
    """The entry, on disk when this returns, for what of the list doesn't act yet; and what is wrong with the list."""
    try:
        listed = read_list(run.config.data.take_down or "")
    except UserError as error:
        return None, error.problems
    taken = TakenDown(run.order.take_downs).at(run.position)
    if missing := len(taken - listed):
        print(
            f"warning: data.take_down: {missing} document(s) that were taken down are no longer on the list; they stay "
            "out, a take-down is for good",
            flush=True,
        )
    new = listed - taken
    if not new:
        return None, []
    found: dict[str, frozenset[bytes]] = {}
    for source in run.sources:  # strata of one source have the same shards
        name = source_of(source.name)
        found[name] = found.get(name, frozenset()) | _found(source, new)
    unknown = new.difference(*found.values())
    held_out = _held_out(run.sources, unknown)
    unknown -= held_out
    evidence = {
        "list": run.config.data.take_down,
        "documents": {name: len(ids) for name, ids in found.items()},
        "held_out": len(held_out),
        "unknown": len(unknown),
    }
    entry = TakeDown(run.position, new, f"{len(new)} document(s) of data.take_down", evidence)
    write_ledger(run.directory.ledger, [*run.order.entries, entry])
    run.directory.append_metrics(
        {"kind": "ledger", "step": run.step, "n_start": entry.n_start, "take_down": len(new), **evidence}
    )
    _announce(entry, len(new) - len(held_out) - len(unknown), held_out, unknown)
    return entry, []


def _announce(entry: TakeDown, known: int, held_out: frozenset[bytes], unknown: frozenset[bytes]) -> None:
    print(f"take-down: {known} document(s) are skipped from sample {entry.n_start} on", flush=True)
    if held_out:
        print(
            f"warning: data.take_down: {len(held_out)} document(s) are held out: never trained on, but still scored by "
            f"evaluations (first: {min(held_out).hex()})",
            flush=True,
        )
    if unknown:
        print(
            f"warning: data.take_down: {len(unknown)} of {len(entry.documents)} document(s) are in no source of this "
            f"run (first: {min(unknown).hex()}); they are skipped if a source that grows brings them",
            flush=True,
        )


def _found(source: Source, ids: frozenset[bytes]) -> frozenset[bytes]:
    """Those of `ids` that are training documents of a source, or of a view of one."""
    index = TakenDown([TakeDown(0, ids)])
    found: set[bytes] = set()
    for shard in range(len(source.shard_tokens)):
        starts = index.in_shard(source, shard)[:, 0]
        documents = np.searchsorted(source.doc_offsets(shard), starts.astype(np.uint64), side="right") - 1
        own = source.documents(shard) if documents.size else None
        documents = documents if own is None else documents[np.isin(documents, own)]
        found.update(one.tobytes() for one in source.doc_ids(shard)[documents])
    return frozenset(found)


def _held_out(sources: list[Source], ids: frozenset[bytes]) -> frozenset[bytes]:
    """Those of `ids` that are held-out documents of a source."""
    if not ids:
        return frozenset()
    folders = {str(source.folder): source.folder for source in sources}  # views of one source have the same
    held_out = (bytes.fromhex(one.id) for folder in folders.values() for one in read_held_out(folder))
    return ids.intersection(held_out)
