"""What prepare has finished of a source, one line a part, so that a killed run goes on from the last whole part.

Readers of shards never look here: for them a source exists when its manifest.json does. The journal also keeps what
only this machine knows (times of change of the raw files), which is why it isn't part of the manifest.
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
from cpt_dist.files import sync_folder

JOURNAL = "journal.jsonl"


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


class Journal:
    """The journal of one source's folder: a header (settings, inputs) and a line for each finished part.

    Each generation has one of its own: journal.jsonl, journal-1.jsonl, ….
    """

    def __init__(self, folder: Path, generation: int = 0) -> None:
        self.path = folder / (f"journal-{generation}.jsonl" if generation else JOURNAL)
        self.header: dict[str, Any] | None = None
        self.parts: list[dict[str, Any]] = []
        if self.path.is_file():
            self._read()

    def _read(self) -> None:
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]  # a killed writer may leave half a line
        try:
            lines = [json.loads(line) for line in whole.splitlines()]
        except ValueError as error:
            raise UserError(f"'{self.path}' is damaged ({error}); remove '{self.path.parent}' and run again") from error
        if len(whole) < len(content):
            with open(self.path, "r+b") as handle:
                handle.truncate(len(whole))
        if lines:
            self.header, self.parts = lines[0], lines[1:]

    def begin(self, header: dict[str, Any]) -> None:
        """Write the header; only where there is none."""
        self.header = header
        self._append(header)
        sync_folder(self.path.parent)

    def add(self, part: dict[str, Any]) -> None:
        """Record a part whose files are all in place."""
        self.parts.append(part)
        self._append(part)

    def _append(self, value: dict[str, Any]) -> None:
        with open(self.path, "ab") as handle:
            handle.write(json.dumps(value, ensure_ascii=False).encode() + b"\n")
            handle.flush()
            os.fsync(handle.fileno())


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
