"""A folder that one process at a time fills, and that goes on only with the settings it was begun with.

It says by name what differs. What a folder holds is the business of who fills it.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cpt_dist.errors import UserError


def difference(old: Any, new: Any, at: str = "") -> str | None:
    """The first place where two JSON values differ, as "key was X and is now Y", or None where they are equal."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            if found := difference(old.get(key), new.get(key), f"{at}.{key}" if at else key):
                return found
        return None
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return next((found for i, (a, b) in pairs if (found := difference(a, b, f"{at}.{i}"))), None)
    return None if old == new else f"{at} was {_short(old)} and is now {_short(new)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else text[:117] + "..."


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder` for one writer; UserError where another process holds it. The lock ends with the process."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another launch/prepare.py is writing '{folder}'; wait for it or end it") from error
        yield
    finally:
        os.close(descriptor)
