"""What rank 0 alone does to the files of a run, with an outcome that all ranks share.

A disk that is full or read-only then ends the job with the same line on every rank, and none of them waits in a
collective for one that has left. Checkpoints, which all ranks write, have a way of their own (`checkpoint/commit.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cpt_dist.engine.distributed import World
from cpt_dist.errors import UserError


def on_first(world: World, action: Callable[[], Any]) -> Any:
    """Run `action` on rank 0 and return its result on all of them, which all call this.

    Raises UserError on every rank, in one line, where it met an OSError.
    """
    outcome: tuple[Any, str | None] = (None, None)
    try:
        outcome = (action() if world.is_first else None, None)
    except OSError as error:
        outcome = (None, str(error))
    result, problem = world.gather(outcome)[0]
    if problem:
        raise UserError(f"{problem}; make room or give write access, and start again: what was whole stays")
    return result
