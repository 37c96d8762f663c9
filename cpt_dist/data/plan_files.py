"""Plans of rows kept in a folder, so that the next process needn't make them again.

A plan can always be made anew, so a file that is missing, damaged or of another source is no error here: it is simply
not there. It is written whole or not at all, and read back only if its checksum holds; it is mapped, not loaded.
Processes that make one plan at once write the same bytes.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import xxhash

from cpt_dist.files import atomic_write, fingerprint

_NAMES = ("first_row", "first_span", "start", "stop")

PlanArrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""first_row, first_span, start and stop of `best_fit.BestFit`, int64."""


def plan_path(folder: Path, name: str, source_fingerprint: str, packing: str, seq_len: int) -> Path:
    """File of a source's plan; a source with other content has another file."""
    return folder / f"{packing}-{seq_len}-{fingerprint([name, source_fingerprint])[:16]}.safetensors"


def _checksum(path: Path, arrays: PlanArrays) -> str:
    digest = xxhash.xxh3_128(path.name.encode())
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def save_plan(path: Path, arrays: PlanArrays) -> bool:
    """Write a plan; False where the folder can't be written."""
    from safetensors.numpy import save

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as handle:
            handle.write(save(dict(zip(_NAMES, arrays, strict=True)), metadata={"xxh3": _checksum(path, arrays)}))
    except OSError:
        return False  # shards on a read-only or full disk: the plan stays in memory
    return True


def load_plan(path: Path) -> PlanArrays | None:
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
        first_row, first_span, start, stop = views
        arrays = (first_row, first_span, start, stop)
        return arrays if _checksum(path, arrays) == header["__metadata__"]["xxh3"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
