"""One action on some ranks whose outcome all ranks learn.

It is what makes a failed write a failure everywhere: nobody waits in the next collective for a rank that has left.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed as dist


def together(action: Callable[[], Any] | None, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Run `action` on the ranks that have one and return all ranks' results, in their order, everywhere.

    Raises OSError on every rank, with what each failing rank's storage said, where it failed on any.
    """
    outcome: tuple[Any, str | None] = (None, None)
    try:
        outcome = (action() if action else None, None)
    except OSError as error:
        outcome = (None, f"rank {dist.get_rank()}: {error}")
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, outcome, group=group)
    failures = [problem for _, problem in gathered if problem]
    if failures:
        raise OSError("; ".join(failures))
    return [result for result, _ in gathered]
