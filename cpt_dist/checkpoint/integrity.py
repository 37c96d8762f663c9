"""Checksums of a checkpoint's files: made when they are written, compared when they are read.

A file has one xxh3-64 over all of it and one over each block, so that a part can be checked without the rest. What is
damaged is named with its file and the rank that wrote it.
"""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import xxhash

from cpt_dist.files import file_checksum

BLOCK_BYTES = 16 << 20
_SAMPLED_SHARE = 16
"""A sampled check reads one block in so many of each file, and at least its first and last."""


def file_entry(path: Path, root: Path, rank: int) -> dict[str, Any]:
    """The manifest's line for a file below `root` that `rank` wrote."""
    whole, blocks = xxhash.xxh3_64(), []
    with open(path, "rb") as handle:
        while block := handle.read(BLOCK_BYTES):
            whole.update(block)
            blocks.append(xxhash.xxh3_64_hexdigest(block))
    return {
        "path": str(path.relative_to(root)),
        "bytes": path.stat().st_size,
        "xxh3": whole.hexdigest(),
        "rank": rank,
        "block_bytes": BLOCK_BYTES,
        "blocks": blocks,
    }


def file_problem(folder: Path, entry: dict[str, Any], how: str, seed: int = 0) -> str | None:
    """What is wrong with a file of the checkpoint in `folder`; None where nothing is.

    `how` is "whole" (every byte is read) or "sampled" (sizes, and blocks chosen by `seed`).
    """
    path = folder / entry["path"]
    where = f"{path}{_written_by(entry)}"
    if not path.is_file():
        return f"{where} is missing"
    if path.stat().st_size != entry["bytes"]:
        return f"{where} has {path.stat().st_size} bytes, not {entry['bytes']}"
    blocks = entry.get("blocks", [])  # a checkpoint of an older version has none and is read whole
    if how == "sampled" and len(blocks) > 2:
        return _sampled_problem(path, where, entry, seed)
    found = file_checksum(path)
    if found != entry["xxh3"]:
        return f"{where} has checksum {found}, its manifest says {entry['xxh3']}"
    return None


def _sampled_problem(path: Path, where: str, entry: dict[str, Any], seed: int) -> str | None:
    blocks, block_bytes = entry["blocks"], entry["block_bytes"]
    inner = range(1, len(blocks) - 1)
    chosen = random.Random(f"{seed} {entry['path']}").sample(inner, len(inner) // _SAMPLED_SHARE)
    with open(path, "rb") as handle:
        for number in sorted({0, len(blocks) - 1, *chosen}):
            handle.seek(number * block_bytes)
            found = xxhash.xxh3_64_hexdigest(handle.read(block_bytes))
            if found != blocks[number]:
                return f"{where} block {number} has checksum {found}, its manifest says {blocks[number]}"
    return None


def _written_by(entry: dict[str, Any]) -> str:
    rank = entry.get("rank")
    if rank is None:
        match = re.fullmatch(r"state/__(\d+)_\d+\.distcp", entry["path"])
        rank = match[1] if match else 0
    return f" (written by rank {rank})"
