"""Where the tensors of a PyTorch distributed checkpoint (DCP) lie, found without torch and without trusting it.

DCP keeps its index in a pickle of classes of its own. Here it is read by an unpickler that knows their names, puts a
plain record in the place of each and refuses every other name, so nothing is imported or called. How a state dict is
loaded through DCP itself is in `dcp.py`.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

from cpt_dist.checkpoint.element_types import BY_NAME, ElementType
from cpt_dist.checkpoint.tensor_source import Piece, TensorSource
from cpt_dist.errors import UserError

KNOWN = {
    "torch.distributed.checkpoint.metadata": {
        "Metadata",
        "MetadataIndex",
        "TensorStorageMetadata",
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "TensorProperties",
        "StorageMeta",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", *BY_NAME},
    "collections": {"OrderedDict"},
    "pathlib": {"PosixPath"},
    "pathlib._local": {"PosixPath"},
    "builtins": {"dict", "list", "tuple", "set"},
}
"""Module -> the names of it that an index may hold."""
UNREADABLE = (
    OSError,
    pickle.UnpicklingError,
    EOFError,
    AttributeError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
)
"""What reading damaged bytes as a pickle, or a pickle of something else as an index, raises."""


class _Record:
    """An object of the index: what it was made from and its attributes."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)
        else:
            self.state = state


class _TensorStorageMetadata(_Record):
    """Of a tensor, in distinction from other objects."""

    properties: Any
    size: Any
    chunks: Any


_STAND_INS: dict[tuple[str, str], Any] = {
    ("torch", "Size"): tuple,
    ("torch.distributed.checkpoint.metadata", "TensorStorageMetadata"): _TensorStorageMetadata,
    ("collections", "OrderedDict"): OrderedDict,
    **{("builtins", kind.__name__): kind for kind in (dict, list, tuple, set)},
    **{("torch", name): element_type for name, element_type in BY_NAME.items()},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in KNOWN.get(module, ()):
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a checkpoint's index")
        return _STAND_INS.get((module, name), _Record)


def dcp_sources(folder: Path) -> dict[str, TensorSource]:
    """Name -> every tensor of the checkpoint in `folder` as pieces in files, of which nothing is read yet.

    Raises UserError where there is no index, where it leads out of its folder, or where it names another class or a
    storage that isn't known here.
    """
    path = folder / ".metadata"
    try:
        index = _Unpickler(io.BytesIO(path.read_bytes())).load()
        return _sources(index, folder)
    except UNREADABLE as error:
        said = " ".join(f"{type(error).__name__} {error}".split())
        raise UserError(f"{path}: not the index of a checkpoint ({said}); fetch or write it again") from error


def _sources(index: Any, folder: Path) -> dict[str, TensorSource]:
    storage = {(key.fqn, tuple(key.offset or ())): where for key, where in (index.storage_data or {}).items()}
    found: dict[str, TensorSource] = {}
    present = {path.name for path in folder.iterdir()}
    for name, entry in index.state_dict_metadata.items():
        if not isinstance(entry, _TensorStorageMetadata):
            continue
        shape, element_type = tuple(entry.size), entry.properties.state[0]
        if not isinstance(element_type, ElementType):
            raise ValueError(f"'{name}' has elements of type {element_type!r}")
        _check_numbers(name, shape)
        pieces = []
        for chunk in entry.chunks:
            where = storage.get((name, tuple(chunk.offsets)))
            if where is not None:
                place = (where.offset, tuple(chunk.offsets), tuple(chunk.sizes), where.length)
                _check_numbers(name, (where.offset, where.length, *chunk.offsets, *chunk.sizes))
                if not len(chunk.offsets) == len(chunk.sizes) == len(shape):
                    raise ValueError(f"'{name}' has {len(shape)} axes and a piece with {len(chunk.sizes)}")
                pieces.append(Piece(_data_file(where, folder, present), *place))
        found[name] = TensorSource(name, shape, element_type, tuple(pieces), grid=shape)
    return found


def _check_numbers(name: str, numbers: tuple[Any, ...]) -> None:
    if not all(isinstance(number, int) and number >= 0 for number in numbers):
        raise ValueError(f"'{name}' has places or lengths {numbers!r}")


def _data_file(where: Any, folder: Path, present: set[str]) -> Path:
    if Path(where.relative_path).name != where.relative_path:
        raise UserError(f"{folder}: its index leads to '{where.relative_path}', out of the checkpoint")
    if getattr(where, "transform_descriptors", None):
        raise UserError(f"{folder} is written with {where.transform_descriptors}; save it without extensions")
    if where.relative_path not in present:
        raise UserError(f"{folder / where.relative_path} is missing, its index lists it; fetch or write it again")
    return folder / where.relative_path
