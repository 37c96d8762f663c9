"""A Hugging Face model folder that appears whole or not at all, and goes on after an interrupted attempt.

Everything is made in `.<name>.part` beside the target; a lock on that folder keeps a second writer, or the workers of
a killed one, from writing into it at the same time. It takes the target's place by a rename. What is written comes
from elsewhere.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cpt_dist.checkpoint.export_weights import JOURNAL, WorkerKilledError
from cpt_dist.errors import UserError
from cpt_dist.files import sync_folder

_LOCK_WAIT_SECONDS = 10.0


def check_target(out: Path, what: str) -> None:
    """Raise UserError, with the setting's name `what`, where `out` holds something that is no model."""
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "config.json").is_file())):
        raise UserError(f"{what}: {out} holds something that is no model; give another folder")


@contextmanager
def folder_in_the_making(out: Path, what: str) -> Iterator[Path]:
    """A folder that becomes `out` when the block ends, and stays to be gone on with where it doesn't end.

    A UserError removes it, since going on would fail again. Raises UserError where another process is at it.
    """
    check_target(out, what)
    part = out.with_name(f".{out.name}.part")
    part.mkdir(parents=True, exist_ok=True)
    lock = os.open(part, os.O_RDONLY)
    try:
        _lock(lock, part)
        try:
            yield part
        except WorkerKilledError:
            raise
        except UserError:
            shutil.rmtree(part)
            raise
        (part / JOURNAL).unlink(missing_ok=True)
        _replace(part, out)
    finally:
        os.close(lock)


def _lock(descriptor: int, part: Path) -> None:
    end = time.monotonic() + _LOCK_WAIT_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > end:
                raise UserError(f"another process is writing {part}; wait for it or give another folder") from None
            time.sleep(0.1)


def _replace(new: Path, target: Path) -> None:
    for path in new.rglob("*"):
        if path.is_file():
            with open(path, "rb") as handle:
                os.fsync(handle.fileno())
    sync_folder(new)
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    os.replace(new, target)
    sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)
