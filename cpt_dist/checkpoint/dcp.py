"""Loading PyTorch's distributed checkpoints (DCP) through DCP without trusting them.

DCP keeps its index in a pickle. Here it is read by an unpickler that knows the classes of such an index and nothing
else; the tensors themselves DCP loads with `weights_only`. Where only bytes are moved, `dcp_index.py` needs no torch.
"""

from __future__ import annotations

import importlib
import io
import pickle
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from cpt_dist.checkpoint.dcp_index import KNOWN, UNREADABLE, index_bytes
from cpt_dist.errors import UserError


def _member(kind: Any, name: Any) -> Any:
    """Stands for `getattr`, which an index may use for a member of an enumeration and nothing else."""
    if not (isinstance(kind, type) and issubclass(kind, Enum) and name in kind.__members__):
        raise pickle.UnpicklingError("builtins.getattr of something else than an enumeration's member")
    return kind[name]


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in KNOWN.get(module, ()):
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a checkpoint's index")
        if (module, name) == ("builtins", "getattr"):
            return _member
        return getattr(importlib.import_module(module), name)


class SafeReader(FileSystemReader):
    """DCP's file reader with the index read once, by the restricted unpickler."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self._folder = folder
        self._index: Metadata | None = None

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The index. Raises UserError where it is no index of a DCP checkpoint."""
        if self._index is None:
            path = self._folder / ".metadata"
            try:
                # What the reader with bounds has read takes no more memory here.
                index = _IndexUnpickler(io.BytesIO(index_bytes(self._folder))).load()
            except UNREADABLE as error:
                raise UserError(f"{path}: not the index of a checkpoint ({error})") from error
            if getattr(index, "storage_meta", None) is not None:
                index.storage_meta.load_id = self.load_id
            self._index = index
        return self._index

    def tensor_shapes(self) -> dict[str, torch.Size]:
        """Name -> whole shape of every tensor."""
        entries = self.read_metadata().state_dict_metadata
        return {name: entry.size for name, entry in entries.items() if isinstance(entry, TensorStorageMetadata)}

    def chunks(self, name: str) -> Iterator[tuple[torch.Size, torch.Tensor]]:
        """The stored boxes of a tensor, one at a time: (offsets, values)."""
        index = self.read_metadata()
        entry = index.state_dict_metadata[name]
        assert isinstance(entry, TensorStorageMetadata)
        wanted = {tuple(chunk.offsets) for chunk in entry.chunks}
        for key in self._keys_of(name):
            offsets = torch.Size(key.offset or (0,) * len(entry.size))
            if tuple(offsets) not in wanted:
                continue
            where: _StorageInfo = (index.storage_data or {})[key]
            with open(self._folder / where.relative_path, "rb") as handle:
                handle.seek(where.offset)
                blob = io.BytesIO(handle.read(where.length))
            yield offsets, torch.load(blob, map_location="cpu", weights_only=True)

    def _keys_of(self, name: str) -> list[Any]:
        if not hasattr(self, "_keys"):
            self._keys: dict[str, list[Any]] = {}
            for key in self.read_metadata().storage_data or {}:
                self._keys.setdefault(key.fqn, []).append(key)
        return self._keys.get(name, [])

    def tensor(self, name: str) -> torch.Tensor:
        """One whole tensor, assembled from its boxes. Raises UserError where boxes are missing."""
        entry = self.read_metadata().state_dict_metadata[name]
        assert isinstance(entry, TensorStorageMetadata)
        whole = torch.empty(entry.size, dtype=entry.properties.dtype)
        filled = 0
        for offsets, values in self.chunks(name):
            box = tuple(slice(start, start + length) for start, length in zip(offsets, values.shape, strict=True))
            whole[box] = values
            filled += values.numel()
        if filled != whole.numel():
            raise UserError(f"{self._folder}: tensor '{name}' has {filled} of {whole.numel()} elements")
        return whole
