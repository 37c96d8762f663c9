"""Checking the bytes of a checkpoint that are about to be read, and no others.

The model is a third of a checkpoint, so a consolidation that verified all of it would read three times what it
needs. The manifest has a checksum of each block of a file; here the blocks are checked under the pieces of the tensors
that come next. A checkpoint of a version without block checksums is verified whole, before.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import xxhash

from cpt_dist.checkpoint.tensor_source import Piece
from cpt_dist.errors import UserError
from cpt_dist.files import file_checksum


class ReadCheck:
    """The checksums of the checkpoint in `folder`, of which `manifest` lists the files."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self._folder, self._step = folder, manifest["step"]
        self._entries: dict[Path, dict[str, Any]] = {folder / entry["path"]: entry for entry in manifest["files"]}

    def files(self) -> None:
        """Check that every file is there and has its size, and the content of those that aren't checked by blocks.

        Raises UserError that names each damaged file.
        """
        problems = []
        for path, entry in self._entries.items():
            if not path.is_file():
                problems.append(f"{path} is missing")
            elif path.stat().st_size != entry["bytes"]:
                problems.append(f"{path} has {path.stat().st_size} bytes, not {entry['bytes']}")
            elif not (path.suffix == ".distcp" and entry.get("blocks")):
                found = file_checksum(path)
                if found != entry["xxh3"]:
                    problems.append(f"{path} has checksum {found}, its manifest says {entry['xxh3']}")
        if problems:
            raise UserError([self._line(problem) for problem in problems])

    def pieces(self, pieces: Iterable[Piece]) -> None:
        """Check the blocks in which `pieces` lie. Raises UserError that names the damaged block."""
        wanted: dict[Path, set[int]] = {}
        for piece in pieces:
            entry = self._entries[piece.path]
            if entry.get("blocks"):
                # A piece inside a file of torch.save has that file's length.
                assert piece.item_bytes is not None
                first, last = piece.offset, piece.offset + max(piece.item_bytes, 1) - 1
                size = entry["block_bytes"]
                wanted.setdefault(piece.path, set()).update(range(first // size, last // size + 1))
        for path, numbers in wanted.items():
            self._check_blocks(path, sorted(numbers))

    def _check_blocks(self, path: Path, numbers: list[int]) -> None:
        entry = self._entries[path]
        size, buffer = entry["block_bytes"], memoryview(bytearray(1 << 18))
        with open(path, "rb", buffering=0) as handle:
            for number in numbers:
                handle.seek(number * size)
                digest, left = xxhash.xxh3_64(), size
                while left and (count := handle.readinto(buffer[: min(left, len(buffer))])):
                    digest.update(buffer[:count])
                    left -= count
                if number >= len(entry["blocks"]) or digest.hexdigest() != entry["blocks"][number]:
                    raise UserError(self._line(f"{path} block {number} has checksum {digest.hexdigest()}, not its own"))

    def _line(self, problem: str) -> str:
        return f"checkpoint {self._step}: {problem}; use another step"
