"""One shard file: mapped, its layout read from its header, each block compared with the manifest when first read.

It knows nothing of sources, documents or tokens (`shards.py`). That block checksums are verified on first read, not
only when a file is fetched, is what MosaicML streaming leaves off by default and pays for with errors far from the
cause.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from cpt_dist.data.remote import RemoteFolder
from cpt_dist.data.shard_cache import CachedFile
from cpt_dist.errors import UserError

DTYPES = {"U8": np.uint8, "U16": np.uint16, "U32": np.uint32, "U64": np.uint64, "F16": np.float16}


_FEWEST_BLOCKS = 8
"""A smaller shard is fetched as a whole, whatever is read of it."""


def layout(content: np.ndarray) -> dict[str, tuple[Any, int, int]]:
    """Tensor -> (dtype, first byte, one past the last byte), from the header at the beginning of a shard's bytes.

    Raises ValueError (or KeyError) for bytes that are no such header; whether the tensors lie in the file isn't asked.
    """
    start = 8 + int.from_bytes(content[:8].tobytes(), "little")
    header = json.loads(content[8:start].tobytes())
    tensors = {name: tensor for name, tensor in header.items() if name != "__metadata__"}
    return {
        name: (DTYPES[tensor["dtype"]], start + tensor["data_offsets"][0], start + tensor["data_offsets"][1])
        for name, tensor in tensors.items()
    }


def _length(sections: dict[str, tuple[Any, int, int]], name: str) -> int:
    if name not in sections:
        return 0
    dtype, first, last = sections[name]
    return (last - first) // np.dtype(dtype).itemsize


@dataclass
class ShardFile:
    """One shard file and its entry in the manifest, mapped and checked when first touched.

    `sections` is name -> (dtype, first byte, one past the last byte); `verified` has a 1 for
    each block that was compared.
    """

    path: Path
    entry: dict[str, Any]
    source: str
    memory: np.ndarray | None = None
    sections: dict[str, tuple[Any, int, int]] = field(default_factory=dict)
    verified: bytearray = field(default_factory=bytearray)
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    views: dict[str, tuple[np.ndarray, np.ndarray, int, int]] = field(default_factory=dict)
    """Of each tensor that was read: the mapped file, the tensor, its first byte and the bytes of an element."""

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "entry": self.entry, "source": self.source}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A copy in another process maps the file and verifies it for itself.
        self.__dict__.update(state, memory=None, sections={}, verified=bytearray(), columns={}, views={})

    def _refuse(self, what: str) -> UserError:
        return UserError(
            f"source '{self.source}': {self.path.name} {what}; fetch it again, "
            f"or remove '{self.path.parent}' and run launch/prepare.py"
        )

    def open(self) -> np.ndarray:
        """Map the file and check its size, its first block and the layout that its header gives."""
        if self.memory is not None:
            return self.memory
        try:
            size = self.path.stat().st_size
            if size != self.entry["bytes"]:
                raise self._refuse(f"has {size} bytes but its manifest says {self.entry['bytes']}")
            # As a plain array: each slice of a memmap costs a microsecond more.
            memory = np.asarray(np.memmap(self.path, dtype=np.uint8, mode="r"))
        except OSError as error:
            raise self._refuse(f"cannot be read ({error.strerror})") from error
        self._read_layout(memory)
        self.memory = memory
        return memory

    def _read_layout(self, memory: np.ndarray) -> None:
        self.verified = bytearray(len(self.entry["blocks"]))
        self._verify(memory, 0, 1)
        self._verify(memory, 0, 8 + int.from_bytes(memory[:8].tobytes(), "little"))
        self.sections = layout(memory)

    def _verify(self, memory: np.ndarray, first: int, last: int) -> None:
        """Compare the checksum of each block that overlaps bytes [first, last) and was not compared before."""
        size = self.entry["block_bytes"]
        begin, end = first // size, min(-(-last // size), len(self.verified))
        if self.verified.find(0, begin, end) < 0:
            return
        for block in range(begin, end):
            if not self.verified[block]:
                content = memory[block * size : (block + 1) * size]
                found, expected = xxhash.xxh3_64_hexdigest(content.data), self.entry["blocks"][block]
                if found != expected:
                    raise self._refuse(f"block {block} has checksum {found} but its manifest says {expected}")
                self.verified[block] = 1

    def has(self, name: str) -> bool:
        """Whether the shard has a tensor of that name."""
        self.open()
        return name in self.sections

    def length(self, name: str) -> int:
        """Elements of a tensor, 0 where the shard has none of that name."""
        self.open()
        return _length(self.sections, name)

    def verify_all(self) -> None:
        """Check every block now."""
        memory = self.open()
        self._verify(memory, 0, len(memory))

    def column(self, name: str, num: int) -> np.ndarray:
        """The first `num` elements of a tensor, always the same number for one name; kept while the file is mapped."""
        found = self.columns.get(name)
        if found is None:
            found = self.read(name, 0, num)
            if self.memory is not None:
                self.columns[name] = found
        return found

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Elements [start, stop) of a tensor, as a read-only view of the mapped file."""
        kept = self.views.get(name)
        if kept is None:
            memory = self.open()
            dtype, first, last = self.sections[name]
            kept = memory, memory[first:last].view(dtype), first, np.dtype(dtype).itemsize
            if self.memory is not None:
                self.views[name] = kept
        memory, whole, first, width = kept
        self._verify(memory, first + start * width, first + stop * width)
        return whole[start:stop]


class RemoteShardFile(ShardFile):
    """A shard behind a URL: fetched into the cache when first read, mapped for as long as something looks at it.

    Nothing is held open in between, so what the cache removes frees its space at once. While the shard isn't in the
    cache, what is read of it besides tokens (offsets, ids, scores) comes alone, as the blocks that it lies in: packing
    or finding a document then needs a small part of each shard.
    """

    def __init__(self, folder: RemoteFolder, entry: dict[str, Any], source: str) -> None:
        self.file = CachedFile(folder, entry, source)
        """The file in the cache."""
        self._folder = folder
        self._columns: dict[str, tuple[Any, int, int]] = {}
        super().__init__(self.file.path, entry, source)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "file": self.file, "_folder": self._folder, "_columns": self._columns}

    def _refuse(self, what: str) -> UserError:
        return self.file.refuse(what)

    def open(self) -> np.ndarray:
        """Fetch the file if it isn't in the cache, map it, and at the first time read the layout in its header."""
        memory = np.frombuffer(self.file.map(), dtype=np.uint8)
        if not self.sections:
            self._read_layout(memory)
        return memory

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Elements [start, stop) of a tensor: a copy of tokens, a read-only view of the mapped file for all else.

        A batch in the making holds the tokens of all its rows; views would keep as many shards in the cache.
        """
        if name == "tokens":
            return self._read_whole(name, start, stop).copy()
        if not self.file.path.exists():
            column = self._read_column(name, start, stop)
            if column is not None:
                return column
        return self._read_whole(name, start, stop)

    def has(self, name: str) -> bool:
        """Whether the shard has a tensor of that name, from its header alone."""
        return name in self._columns if self._read_header() else super().has(name)

    def length(self, name: str) -> int:
        """Elements of a tensor, 0 where the shard has none of that name; from its header alone."""
        return _length(self._columns, name) if self._read_header() else super().length(name)

    def _read_header(self) -> bool:
        """Fill `_columns` from the first block; False where the header is longer, or the shard too small for that."""
        if not self._columns and len(self.entry["blocks"]) >= _FEWEST_BLOCKS:
            header = np.frombuffer(CachedFile(self._folder, self.entry, self.source, 0, 1).verified_map(), np.uint8)
            if 8 + int.from_bytes(header[:8].tobytes(), "little") <= len(header):
                self._columns = layout(header)
        return bool(self._columns)

    def _read_whole(self, name: str, start: int, stop: int) -> np.ndarray:
        try:
            return super().read(name, start, stop)
        except UserError:
            if not self.file.path.exists():
                raise  # it couldn't be fetched
            # Every block agreed when it came, so it is the copy on this disk that was damaged since.
            self.file.forget()
            self.sections = {}
            return super().read(name, start, stop)

    def _read_column(self, name: str, start: int, stop: int) -> np.ndarray | None:
        """`read` from the blocks of the tensor alone; None where those are most of the shard."""
        if not self._read_header():
            return None
        block_bytes, num_blocks = self.entry["block_bytes"], len(self.entry["blocks"])
        dtype, first, last = self._columns[name]
        blocks = first // block_bytes, -(-last // block_bytes)
        if blocks[1] - blocks[0] > num_blocks // 2:
            return None
        part = np.frombuffer(CachedFile(self._folder, self.entry, self.source, *blocks).verified_map(), np.uint8)
        first -= blocks[0] * block_bytes
        width = np.dtype(dtype).itemsize
        return part[first + start * width : first + stop * width].view(dtype)


def shard_file(folder: Path | RemoteFolder, entry: dict[str, Any], source: str) -> ShardFile:
    """The shard of a manifest entry, in a folder of this machine or behind a URL."""
    if isinstance(folder, RemoteFolder):
        return RemoteShardFile(folder, entry, source)
    return ShardFile(folder / entry["file"], entry, source)
