"""The user's take-down list becomes an entry of the ledger, once, where a start or a resume first sees it.

Rank 0 reads the list and writes; the ranks share the search for its documents in the shards, and all get the same new
order. A document that is no longer on the list stays out: a take-down is for good, and the ledger, not the list, says
what holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cpt_dist.data.ledger_entry import write_ledger
from cpt_dist.data.masking import TakenDown
from cpt_dist.data.remote import RemoteFolder
from cpt_dist.data.run_order import sample_order
from cpt_dist.data.shards import Source, merge_held_out, read_manifest
from cpt_dist.data.take_down import TakeDown, read_list
from cpt_dist.data.view_names import source_of
from cpt_dist.engine.distributed import World
from cpt_dist.errors import UserError
from cpt_dist.training.first_rank import on_first
from cpt_dist.training.run import Run


def take_down(run: Run) -> None:
    """Let `data.take_down` act from the run's position on; called on every rank, once the position is known.

    Raises UserError, on every rank alike, for a list that can't be read.
    """
    if run.config.data.take_down is None:
        return
    new, problems = on_first(run.world, lambda: _new_on_list(run))
    if problems:
        raise UserError(problems)
    if not new:
        return
    index = TakenDown([TakeDown(0, new)])
    searches: list[Search] = [
        (source_of(source.name), partial(_in_shard, source, shard, index))  # strata of one source have the same shards
        for source in run.sources
        for shard in range(len(source.shard_tokens))
    ]
    trained = found_together(run.world, searches)
    left = new.difference(*trained.values())
    folders = {str(source.folder): source.folder for source in run.sources} if left else {}  # views share theirs
    searches = [
        (folder.name, partial(_in_held_out, folder, entry, left))
        for folder in folders.values()
        for entry in read_manifest(folder)["held_out"]
    ]
    held_out = left.intersection(*[set().union(*found_together(run.world, searches).values())])
    entry = on_first(run.world, lambda: _entered(run, new, trained, held_out, left - held_out))
    run.order = sample_order(run.config, run.sources, [*run.order.entries, entry])


Search = tuple[str, Callable[[], set[bytes]]]
"""Where it looks, and what finds documents there."""


def found_together(world: World, searches: Sequence[Search]) -> dict[str, set[bytes]]:
    """What `searches`, the same on every rank, find in each place; each rank makes its share of them.

    Raises UserError, on every rank, where one of them can't read what it looks through.
    """
    found: dict[str, set[bytes]] = {}
    problems: list[str] = []
    try:
        for place, search in searches[world.rank :: world.size]:
            found.setdefault(place, set()).update(search())
    except UserError as error:
        problems = error.problems
    shares = world.gather((found, problems))
    if problems := [problem for _, said in shares for problem in said]:
        raise UserError(problems)
    places = dict.fromkeys(place for place, _ in searches)
    return {place: set().union(*(share.get(place, set()) for share, _ in shares)) for place in places}


def _new_on_list(run: Run) -> tuple[frozenset[bytes], list[str]]:
    """What of the list doesn't act yet, and what is wrong with the list."""
    try:
        listed = read_list(run.config.data.take_down or "")
    except UserError as error:
        return frozenset(), error.problems
    taken = TakenDown(run.order.take_downs).at(run.position)
    if missing := len(taken - listed):
        print(
            f"warning: data.take_down: {missing} document(s) that were taken down are no longer on the list; they stay "
            "out, a take-down is for good",
            flush=True,
        )
    return listed - taken, []


def _entered(
    run: Run,
    new: frozenset[bytes],
    trained: dict[str, set[bytes]],
    held_out: frozenset[bytes],
    unknown: frozenset[bytes],
) -> TakeDown:
    """The entry, on disk when this returns."""
    evidence = {
        "list": run.config.data.take_down,
        "documents": {name: len(ids) for name, ids in trained.items()},
        "held_out": len(held_out),
        "unknown": len(unknown),
    }
    entry = TakeDown(run.position, new, f"{len(new)} document(s) of data.take_down", evidence)
    write_ledger(run.directory.ledger, [*run.order.entries, entry])
    run.directory.append_metrics(
        {"kind": "ledger", "step": run.step, "n_start": entry.n_start, "take_down": len(new), **evidence}
    )
    _announce(entry, len(new) - len(held_out) - len(unknown), held_out, unknown)
    return entry


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


def _in_shard(source: Source, shard: int, index: TakenDown) -> set[bytes]:
    """The ids in `index` that are training documents in a shard of a source, or of a view of one."""
    starts = index.in_shard(source, shard)[:, 0]
    documents = np.searchsorted(source.doc_offsets(shard), starts.astype(np.uint64), side="right") - 1
    own = source.documents(shard) if documents.size else None
    documents = documents if own is None else documents[np.isin(documents, own)]
    return {one.tobytes() for one in source.doc_ids(shard)[documents]}


def _in_held_out(folder: Path | RemoteFolder, entry: dict[str, Any], ids: frozenset[bytes]) -> set[bytes]:
    """Those of `ids` that are documents of the held-out file of which a source's manifest has the `entry`."""
    return {bytes.fromhex(one.id) for one in merge_held_out(folder, folder.name, [entry])} & ids
