"""Plans of rows kept beside the shards, so that the next process needn't make them again.

A plan can always be made anew, so a file that is missing, damaged or of another shard is no error here: it is simply
not there. It is written whole or not at all, and read back only if its checksum holds; it is mapped, not loaded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from cpt_dist.files import atomic_write, fingerprint

FOLDER = "plans"
_NAMES = ("first_span", "start", "stop")


def plan_path(folder: Path, entry: dict[str, Any], seq_len: int, version: int) -> Path:
    """File of the best-fit plan of the shard with the manifest `entry`; another content has another name."""
    content = fingerprint({name: entry[name] for name in ("bytes", "documents", "tokens", "blocks")})
    stem = Path(entry["file"]).stem
    return folder / FOLDER / f"{stem}-best_fit-{version}-{seq_len}-{content[:16]}.safetensors"


def _checksum(path: Path, arrays: tuple[np.ndarray, ...]) -> str:
    digest = xxhash.xxh3_128(path.name.encode())
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def save_plan(path: Path, arrays: tuple[np.ndarray, ...]) -> bool:
    """Write a plan (int64 arrays: first_span, start, stop); False where the folder can't be written."""
    from safetensors.numpy import save

    try:
        path.parent.mkdir(exist_ok=True)
        with atomic_write(path) as handle:
            handle.write(save(dict(zip(_NAMES, arrays, strict=True)), metadata={"xxh3": _checksum(path, arrays)}))
    except OSError:
        return False  # shards on a read-only medium: the plan stays in memory
    return True


def load_plan(path: Path) -> tuple[np.ndarray, ...] | None:
    """The arrays of a plan as views of the mapped file, or None where there is none that is whole."""
    try:
        memory = np.memmap(path, dtype=np.uint8, mode="r")
        header_bytes = int.from_bytes(memory[:8].tobytes(), "little")
        header = json.loads(memory[8 : 8 + header_bytes].tobytes())
        begin = 8 + header_bytes
        views = []
        for name in _NAMES:
            first, last = header[name]["data_offsets"]
            views.append(np.asarray(memory[begin + first : begin + last]).view(np.int64))
        arrays = tuple(views)
        return arrays if _checksum(path, arrays) == header["__metadata__"]["xxh3"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
