"""Files that are either whole or absent.

Everything that another process may read is written under a temporary name, flushed to the disk and renamed; the
folder is flushed too, so that the name survives a power cut. The way is the one that SQLite documents for its
rollback journal ("Atomic Commit In SQLite", section 3).
"""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import xxhash

_CACHED_BYTES = 1 << 18
"""About what fits into a core's cache."""
_SYNC_FILE_RANGE_WRITE = 2
_LIBC = ctypes.CDLL(None)


def sync_folder(path: Path) -> None:
    """Flush a folder's entries, so that a rename in it survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_write(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open `path` for writing such that it appears whole on success and not at all otherwise."""
    target = Path(path)
    temporary = target.with_name(f".{target.name}.tmp.{os.getpid()}")
    encoding = None if "b" in mode else "utf-8"
    try:
        with open(temporary, mode, encoding=encoding) as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # a full disk is met in a write, which knows no name
            error.filename = str(target)
        raise
    sync_folder(target.parent)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_write(path, "w") as handle:
        json.dump(value, handle, indent=1, ensure_ascii=False)
        handle.write("\n")


def fingerprint(value: Any) -> str:
    """xxh3-128 (hex) of a JSON value, independent of key order."""
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return xxhash.xxh3_128_hexdigest(canonical.encode())


def file_checksum(path: str | Path, block_bytes: int = 1 << 22) -> str:
    """xxh3-64 (hex) of a file's content, read in blocks."""
    digest = xxhash.xxh3_64()
    with open(path, "rb") as handle:
        while block := handle.read(block_bytes):
            digest.update(block)
    return digest.hexdigest()


def stored_checksum(descriptor: int, offset: int, num_bytes: int) -> str:
    """xxh3-64 (hex) of bytes [offset, offset + num_bytes) of an open file, or of those of them that it has."""
    digest, buffer = xxhash.xxh3_64(), memoryview(bytearray(min(num_bytes, _CACHED_BYTES)))
    while num_bytes:
        count = os.preadv(descriptor, [buffer[:num_bytes]], offset)
        if count == 0:
            break
        digest.update(buffer[:count])
        offset, num_bytes = offset + count, num_bytes - count
    return digest.hexdigest()


def begin_flush(descriptor: int, offset: int, num_bytes: int) -> None:
    """Let the disk begin with what was just written, so that the fsync of the whole file finds little left to do."""
    begin = getattr(_LIBC, "sync_file_range", None)  # glibc's; elsewhere the fsync does it all
    if begin is not None:
        begin(ctypes.c_int(descriptor), ctypes.c_int64(offset), ctypes.c_int64(num_bytes), _SYNC_FILE_RANGE_WRITE)
