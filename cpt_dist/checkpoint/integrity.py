"""Checksums of a checkpoint's files: made when they are written, compared when they are read.

A file has one xxh3-64 over all of it and one over each block, so that a part can be checked without the rest. What is
damaged is named with its file and the rank that wrote it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from cpt_dist.files import file_checksum, stored_checksum

BLOCK_BYTES = 16 << 20
_SAMPLED_SHARE = 16
"""A sampled check reads one block in so many of each file, and at least its first and last."""


def entry(path: Path, num_bytes: int, checksum: str, rank: int, blocks: list[str]) -> dict[str, Any]:
    """The manifest's line for a file that `rank` wrote; `path` is relative, `blocks` are checksums in their order."""
    return {
        "path": str(path),
        "bytes": num_bytes,
        "xxh3": checksum,
        "rank": rank,
        "block_bytes": BLOCK_BYTES,
        "blocks": blocks,
    }


def file_entry(path: Path, root: Path, rank: int) -> dict[str, Any]:
    """The manifest's line for a small file below `root` that `rank` wrote, from its content."""
    content = path.read_bytes()
    blocks = [content[start : start + BLOCK_BYTES] for start in range(0, len(content), BLOCK_BYTES)]
    sums = [xxhash.xxh3_64_hexdigest(block) for block in blocks]
    return entry(path.relative_to(root), len(content), xxhash.xxh3_64_hexdigest(content), rank, sums)


@dataclass(frozen=True)
class Share:
    """What one of `of` checkers reads: every `of`-th block, counted through all files, from number `part` on.

    Blocks and not files are shared, since a checkpoint written by few ranks may be checked by many.
    """

    part: int = 0
    of: int = 1

    def blocks(self, before: int, wanted: Iterable[int]) -> list[int]:
        """Those of the blocks `wanted` of a file that are its own, where `before` blocks lie in the files before it."""
        return [number for number in wanted if (before + number) % self.of == self.part]


def problems(
    folder: Path, entries: Sequence[dict[str, Any]], how: str, seed: int = 0, share: Share | None = None
) -> list[str]:
    """A line for each file of the checkpoint in `folder` that `share` (default: of everything) finds damaged.

    `how` is "whole" (every byte is read) or "sampled" (sizes, and blocks chosen by `seed`).
    """
    share, before, found = share or Share(), 0, []
    for entry in entries:
        numbers = share.blocks(before, _wanted(entry, how, seed))
        before += _num_blocks(entry)
        problem = _file_problem(folder, entry, numbers) if numbers else None
        if problem:
            found.append(problem)
    return found


def _num_blocks(entry: dict[str, Any]) -> int:
    # A checkpoint of an older version has no blocks, and an empty file none either; each is read whole, by one.
    return len(entry.get("blocks", [])) or 1


def _wanted(entry: dict[str, Any], how: str, seed: int) -> Iterable[int]:
    """Numbers of the blocks of a file that are to be read, rising."""
    count = _num_blocks(entry)
    if how != "sampled" or count <= 2:
        return range(count)
    inner = range(1, count - 1)
    chosen = random.Random(f"{seed} {entry['path']}").sample(inner, len(inner) // _SAMPLED_SHARE)
    return sorted({0, count - 1, *chosen})


def _file_problem(folder: Path, entry: dict[str, Any], numbers: Sequence[int]) -> str | None:
    path = folder / entry["path"]
    where = f"{path}{_written_by(entry)}"
    if not path.is_file():
        return f"{where} is missing"
    if path.stat().st_size != entry["bytes"]:
        return f"{where} has {path.stat().st_size} bytes, not {entry['bytes']}"
    blocks = entry.get("blocks", [])
    if not blocks:
        found = file_checksum(path)
        return None if found == entry["xxh3"] else f"{where} has checksum {found}, its manifest says {entry['xxh3']}"
    block_bytes = entry["block_bytes"]
    with open(path, "rb", buffering=0) as handle:
        for number in numbers:
            found = stored_checksum(handle.fileno(), number * block_bytes, block_bytes)
            if found != blocks[number]:
                return f"{where} block {number} has checksum {found}, its manifest says {blocks[number]}"
    return None


def _written_by(entry: dict[str, Any]) -> str:
    rank = entry.get("rank")
    if rank is None:
        match = re.fullmatch(r"state/__(\d+)_\d+\.distcp", entry["path"])
        rank = match[1] if match else 0
    return f" (written by rank {rank})"
