"""Where the tensors of a PyTorch distributed checkpoint (DCP) lie, found without torch and without trusting it.

DCP keeps its index in a pickle of classes of its own. Here it is read by an unpickler that knows their names, puts a
plain record in the place of each and refuses every other name, so nothing is imported or called. How a state dict is
loaded through DCP itself is in `dcp.py`.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Sized
from pathlib import Path
from typing import Any

from cpt_dist.checkpoint.element_types import BY_NAME, ElementType
from cpt_dist.checkpoint.pickle_limits import MOST_FIELDS, Budget, PlainDict, read_pickle_bytes
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
    # Python 3.11.0 to 3.11.3 write a member of an enumeration as getattr(class, name).
    "builtins": {"dict", "list", "tuple", "set", "getattr"},
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
        _check_fields(arguments)
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        _check_fields(state)
        if isinstance(state, dict):
            self.__dict__.update(state)
        else:
            self.state = state


def _check_fields(values: Any) -> None:
    if isinstance(values, Sized) and len(values) > MOST_FIELDS:
        raise pickle.UnpicklingError(f"an object of it has {len(values):,} fields, at most {MOST_FIELDS} are read")


def _member(kind: Any, name: Any) -> _Record:
    """Stands for `getattr`, which here has one use: a member of an enumeration."""
    if kind is not _Record or not isinstance(name, str):
        raise pickle.UnpicklingError("builtins.getattr of something else than an enumeration")
    return _Record(name)


class _TensorStorageMetadata(_Record):
    """Of a tensor, in distinction from other objects."""

    properties: Any
    size: Any
    chunks: Any


_CONTAINERS = {
    ("torch", "Size"): tuple,
    ("collections", "OrderedDict"): PlainDict,
    **{("builtins", kind.__name__): kind for kind in (dict, list, tuple, set)},
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        budget = Budget(len(data))
        self._stand_ins: dict[tuple[str, str], Any] = {
            ("torch.distributed.checkpoint.metadata", "TensorStorageMetadata"): _TensorStorageMetadata,
            ("builtins", "getattr"): _member,
            **{place: budget.guarded(kind) for place, kind in _CONTAINERS.items()},
            **{("torch", name): element_type for name, element_type in BY_NAME.items()},
        }

    def find_class(self, module: str, name: str) -> Any:
        if name not in KNOWN.get(module, ()):
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a checkpoint's index")
        return self._stand_ins.get((module, name), _Record)


def index_bytes(folder: Path) -> bytes:
    """The index in `folder`, a pickle that was read once with bounds on its memory.

    Raises UnpicklingError, or what else `UNREADABLE` lists, where it goes beyond them or is no index.
    """
    data = read_pickle_bytes(folder / ".metadata")
    _Unpickler(data).load()
    return data


def dcp_sources(folder: Path) -> dict[str, TensorSource]:
    """Name -> every tensor of the checkpoint in `folder` as pieces in files, of which nothing is read yet.

    Raises UserError where there is no index, where it leads out of its folder, or where it names another class or a
    storage that isn't known here.
    """
    path = folder / ".metadata"
    try:
        index = _Unpickler(read_pickle_bytes(path)).load()
        return _sources(index, folder)
    except UNREADABLE as error:
        said = " ".join(f"{type(error).__name__} {error}".split())
        raise UserError(f"{path}: not the index of a checkpoint ({said}); fetch or write it again") from error


def _sources(index: Any, folder: Path) -> dict[str, TensorSource]:
    storage = {(key.fqn, _numbers(key.fqn, key.offset or ())): at for key, at in (index.storage_data or {}).items()}
    found: dict[str, TensorSource] = {}
    present = {path.name: path.stat().st_size for path in folder.iterdir()}
    for name, entry in index.state_dict_metadata.items():
        if not isinstance(entry, _TensorStorageMetadata):
            continue
        shape, element_type = _numbers(name, entry.size), entry.properties.state[0]
        if not isinstance(element_type, ElementType):
            raise ValueError(f"'{name}' has elements of type {element_type!r}")
        pieces = []
        for chunk in entry.chunks:
            offsets, sizes = _numbers(name, chunk.offsets), _numbers(name, chunk.sizes)
            where = storage.get((name, offsets))
            if where is not None:
                _numbers(name, (where.offset, where.length))
                if not len(offsets) == len(sizes) == len(shape):
                    raise ValueError(f"'{name}' has {len(shape)} axes and a piece with {len(sizes)}")
                file = _data_file(where, folder, present)
                _check_place(name, where, math.prod(sizes) * element_type.itemsize, file, present[file.name])
                pieces.append(Piece(file, where.offset, offsets, sizes, where.length))
        found[name] = TensorSource(name, shape, element_type, tuple(pieces), grid=shape)
    return found


def _numbers(name: str, numbers: Any) -> tuple[int, ...]:
    """Places or lengths of a tensor. Raises ValueError for absurd ones."""
    if len(numbers) > MOST_FIELDS:
        raise ValueError(f"'{name}' has {len(numbers):,} axes")
    if not all(isinstance(number, int) and 0 <= number < 1 << 63 for number in numbers):
        raise ValueError(f"'{name}' has places or lengths {tuple(numbers)!r:.200}")
    return tuple(numbers)


def _check_place(name: str, where: Any, num_bytes: int, file: Path, file_bytes: int) -> None:
    if num_bytes > where.length or where.offset + where.length > file_bytes:
        raise UserError(
            f"{file} has {file_bytes:,} bytes, its index looks in bytes {where.offset:,} to "
            f"{where.offset + where.length:,} for {num_bytes:,} of '{name}'; fetch or write it again"
        )


def _data_file(where: Any, folder: Path, present: dict[str, int]) -> Path:
    if Path(where.relative_path).name != where.relative_path:
        raise UserError(f"{folder}: its index leads to '{where.relative_path}', out of the checkpoint")
    if getattr(where, "transform_descriptors", None):
        raise UserError(f"{folder} is written with {where.transform_descriptors}; save it without extensions")
    if where.relative_path not in present:
        raise UserError(f"{folder / where.relative_path} is missing, its index lists it; fetch or write it again")
    return folder / where.relative_path
