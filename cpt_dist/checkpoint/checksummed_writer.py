"""DCP's file writer with the checksums of its files taken while their bytes are written.

So a save doesn't read back what it has just written, a checksum is that of what was meant to be in the file, and the
disk is at work from the first megabytes on instead of only at the flush. Format and order of the files are DCP's.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import xxhash
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.filesystem import FileSystem

from cpt_dist.checkpoint import integrity
from cpt_dist.files import begin_flush

_CHUNK_BYTES = 1 << 20
"""Fits into a core's cache, so that it is read from memory once for its checksums and its write."""
_FLUSH_BYTES = 16 << 20
"""After so many bytes the disk is asked to begin with them."""


class ChecksummedWriter(FileSystemWriter):
    """Writes one file a rank into `folder`, each flushed to the disk when it is whole."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder), sync_files=True)
        self._files = self.fs = _ChecksummedFiles()

    def entries(self, root: Path, rank: int) -> list[dict[str, Any]]:
        """The manifest's lines for the files of tensors that this process has written below `root`.

        Raises OSError where one is gone or has another length.
        """
        found = []
        for path, file in sorted(self._files.written.items()):
            if path.stat().st_size != file.num_bytes:
                raise OSError(f"{path} has {path.stat().st_size} bytes, {file.num_bytes} were written")
            found.append(
                integrity.entry(path.relative_to(root), file.num_bytes, file.whole.hexdigest(), rank, file.blocks)
            )
        return found


class _ChecksummedFiles(FileSystem):
    def __init__(self) -> None:
        self.written: dict[Path, _ChecksummedFile] = {}

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[io.IOBase]:
        if Path(path).suffix != ".distcp":  # the index, which is renamed
            with super().create_stream(path, mode) as stream:
                yield stream
            return
        with open(path, "wb") as raw:
            file = self.written[Path(path)] = _ChecksummedFile(raw)
            yield cast(io.IOBase, file)
            file.end()


class _ChecksummedFile:
    """What DCP needs of a file that is only appended to."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self.whole, self._block = xxhash.xxh3_64(), xxhash.xxh3_64()
        self.num_bytes, self._flushing = 0, 0
        self.blocks: list[str] = []

    def write(self, data: Any) -> int:
        """Append bytes."""
        view = memoryview(data).cast("B")
        num_bytes = len(view)
        while len(view):
            room = integrity.BLOCK_BYTES - self.num_bytes % integrity.BLOCK_BYTES
            chunk = view[: min(room, _CHUNK_BYTES)]
            self._append(chunk)
            if len(chunk) == room:
                self._end_block()
            view = view[len(chunk) :]
        return num_bytes

    def _append(self, chunk: memoryview) -> None:
        self.whole.update(chunk)
        self._block.update(chunk)
        self._raw.write(chunk)
        self.num_bytes += len(chunk)
        if self.num_bytes - self._flushing >= _FLUSH_BYTES:
            self._raw.flush()
            begin_flush(self._raw.fileno(), self._flushing, self.num_bytes - self._flushing)
            self._flushing = self.num_bytes

    def _end_block(self) -> None:
        self.blocks.append(self._block.hexdigest())
        self._block = xxhash.xxh3_64()

    def end(self) -> None:
        """Take the checksum of the last block."""
        if self.num_bytes % integrity.BLOCK_BYTES:
            self._end_block()

    def tell(self) -> int:
        """Bytes so far."""
        return self.num_bytes

    def flush(self) -> None:
        """Hand everything to the operating system."""
        self._raw.flush()

    def fileno(self) -> int:
        """For fsync."""
        return self._raw.fileno()

    def close(self) -> None:
        """No more bytes come."""
        self._raw.close()
