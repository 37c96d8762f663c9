"""What prepare has finished of a source, one line a part, so that a killed run goes on from the last whole part.

Readers of shards never look here: for them a source exists when its manifest.json does. The journal also keeps what
only this machine knows (times of change of the raw files), which is why it isn't part of the manifest.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from cpt_dist.errors import UserError
from cpt_dist.files import sync_folder

JOURNAL = "journal.jsonl"


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
