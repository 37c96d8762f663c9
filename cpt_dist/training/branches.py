"""Checkpoints of a branch that a gate's fork has given up.

They hold a position in a plan that the run no longer has, so none of them may be resumed. That is done before a job
looks for its newest checkpoint, since the one that decided the fork may have been killed before it could.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from cpt_dist.checkpoint.commit import retire
from cpt_dist.checkpoint.store import CheckpointStore
from cpt_dist.data.gate_decision import forks
from cpt_dist.data.ledger_entry import Entry


def give_up_branches(store: CheckpointStore, ledger: Sequence[Entry]) -> None:
    """Take away, as one process, what lies behind a fork of the ledger and was made before it; named ones are renamed.

    The next tidying deletes the others. A checkpoint that can't be read stays: whoever verifies it says so.
    """
    decisions = forks(ledger)
    named = set(store.names().values()) if decisions else set()
    for step in store.steps() if decisions else ():
        try:
            trainer = store.trainer(step)
        except (OSError, ValueError):
            continue
        if any(int(trainer["position"]) > int(one.back_to or 0) for one in decisions[int(trainer.get("forks", 0)) :]):
            if step in named:
                path = store.path(step)
                os.replace(path, path.with_name(f"abandoned-{path.name}-{int(time.time())}"))
            else:
                retire(store.folder, step)
