"""Checking the bytes of a checkpoint that are about to be read, and no others.

The model is a third of a checkpoint, so a consolidation that verified all of it would read three times what it
needs. The manifest has a checksum of each block of a file; here the blocks under the tensors that are read are checked
in the same pass. A checkpoint of a version without block checksums is verified whole, before.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from cpt_dist.checkpoint.tensor_source import Files, Piece
from cpt_dist.errors import UserError
from cpt_dist.files import file_checksum

_BETWEEN_BYTES = 1 << 18


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

    def reading(self, pieces: Iterable[Piece]) -> CheckedFiles:
        """Files in which `pieces` can be read, and whose blocks under them are checked meanwhile."""
        wanted: dict[Path, set[int]] = {}
        for piece in pieces:
            entry = self._entries[piece.path]
            if entry.get("blocks"):
                # A piece inside a file of torch.save has that file's length.
                assert piece.item_bytes is not None
                first, last = piece.offset, piece.offset + max(piece.item_bytes, 1) - 1
                size = entry["block_bytes"]
                wanted.setdefault(piece.path, set()).update(range(first // size, last // size + 1))
        return CheckedFiles(self, wanted)

    def block_bytes(self, path: Path) -> int:
        """Length of the blocks of a file that has some."""
        return int(self._entries[path]["block_bytes"])

    def compare(self, path: Path, number: int, checksum: str) -> None:
        """Raise UserError that names the block of a file where `checksum` isn't its own."""
        blocks = self._entries[path]["blocks"]
        if number >= len(blocks) or checksum != blocks[number]:
            raise UserError(self._line(f"{path} block {number} has checksum {checksum}, not its own"))

    def _line(self, problem: str) -> str:
        return f"checkpoint {self._step}: {problem}; use another step"


@dataclass
class _Block:
    """One that is being read."""

    number: int
    at: int
    """Byte of the file up to which `digest` goes."""
    end: int
    digest: xxhash.xxh3_64 = field(default_factory=xxhash.xxh3_64)


class CheckedFiles(Files):
    """Files whose blocks `wanted` are compared with their checksums while other bytes of them are asked for.

    What is read in order is read once, while it is in the cache; what lies between goes into the checksums too. Bytes
    are given out before their block is compared, so they are good only when `check` has returned.
    """

    def __init__(self, check: ReadCheck, wanted: dict[Path, set[int]]) -> None:
        super().__init__()
        self._check, self._wanted = check, wanted
        self._blocks: dict[Path, _Block] = {}
        self._between = memoryview(bytearray(_BETWEEN_BYTES))

    def read(self, path: Path, view: memoryview, at: int) -> None:
        """Fill `view` from byte `at` of a file. Raises UserError where the file is too short or a block damaged."""
        super().read(path, view, at)
        wanted = self._wanted.get(path)
        if not wanted:
            return
        size = self._check.block_bytes(path)
        while len(view):
            number = at // size
            part = view[: (number + 1) * size - at]
            if number in wanted:
                self._take(path, number, at, part)
            at, view = at + len(part), view[len(part) :]

    def check(self) -> None:
        """Read and compare what is left of the blocks. Raises UserError that names the damaged one."""
        for path, wanted in self._wanted.items():
            if path in self._blocks:
                self._finish(path)
            for number in sorted(wanted):
                self._begin(path, number)
                self._finish(path)

    def _take(self, path: Path, number: int, at: int, part: memoryview) -> None:
        block = self._blocks.get(path)
        if block is not None and block.number != number:
            self._finish(path)
            block = None
        block = block or self._begin(path, number)
        if at < block.at:
            self._finish(path)
            return
        self._read_on(path, block, at)
        block.digest.update(part)
        block.at += len(part)
        if block.at == block.end:
            self._finish(path)

    def _begin(self, path: Path, number: int) -> _Block:
        size = self._check.block_bytes(path)
        end = min((number + 1) * size, os.fstat(self.descriptor(path)).st_size)
        block = self._blocks[path] = _Block(number, number * size, end)
        return block

    def _read_on(self, path: Path, block: _Block, to: int) -> None:
        while block.at < to:
            part = self._between[: to - block.at]
            super().read(path, part, block.at)
            block.digest.update(part)
            block.at += len(part)

    def _finish(self, path: Path) -> None:
        block = self._blocks.pop(path)
        self._read_on(path, block, block.end)
        self._check.compare(path, block.number, block.digest.hexdigest())
        self._wanted[path].discard(block.number)
