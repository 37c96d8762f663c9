"""Looking into files of torch.save without loading a tensor or running anything that they name.

Such a file is an uncompressed zip: a pickle of the structure, and the raw bytes of each storage. The pickle is read
by an unpickler that knows how a tensor is put together and builds a `StoredTensor`, a place in the file; any other
class that it names becomes an `Inert` record of that name, so nothing is imported or called. The format is PyTorch's
(torch/serialization.py, `_save`).
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from cpt_dist.checkpoint.element_types import BY_NAME, ElementType
from cpt_dist.checkpoint.pickle_limits import MOST_CLASSES, MOST_FIELDS, Budget, PlainDict, check_length, check_opcodes
from cpt_dist.errors import UserError

_STORAGES = {
    "DoubleStorage": BY_NAME["float64"],
    "FloatStorage": BY_NAME["float32"],
    "HalfStorage": BY_NAME["float16"],
    "BFloat16Storage": BY_NAME["bfloat16"],
    "LongStorage": BY_NAME["int64"],
    "IntStorage": BY_NAME["int32"],
    "ShortStorage": BY_NAME["int16"],
    "CharStorage": BY_NAME["int8"],
    "ByteStorage": BY_NAME["uint8"],
    "BoolStorage": BY_NAME["bool"],
}
_LOCAL_HEADER_BYTES = 30
_UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    pickle.UnpicklingError,
    struct.error,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    ArithmeticError,
    MemoryError,
    RuntimeError,
    OSError,
)
"""What reading damaged bytes as a zip and as a pickle raises."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that is still in its file: C-contiguous, little-endian."""

    path: Path
    offset: int
    """Byte of the file at which the tensor's first element is."""
    dtype: ElementType
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


_ZERO_STAGES = {"disabled": 0, "optimizer_states": 1, "gradients": 2, "weights": 3}
"""Name -> value of the members of DeepSpeed's ZeroStageEnum."""


class Inert:
    """What an object of a class that isn't needed becomes: it keeps what it was made from and does nothing."""

    budget: Budget | None = None

    def __init__(self, *arguments: Any, **_: Any) -> None:
        if self.budget is not None:
            self.budget.spend(arguments)
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        """Items of a subclass of dict."""

    def append(self, value: Any) -> None:
        """Items of a subclass of list."""

    def __call__(self, *arguments: Any) -> Inert:
        return type(self)(*arguments)


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: ElementType


class _Window(io.RawIOBase):
    """Bytes [start, start + length) of a file, as a file."""

    def __init__(self, handle: IO[bytes], start: int, length: int) -> None:
        self._handle, self._start, self._length, self._at = handle, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        if base + offset < 0:
            raise OSError(22, "seek before the start")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        self._handle.seek(self._start + self._at)
        wanted = max(0, min(len(buffer), self._length - self._at))
        data = self._handle.read(wanted)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


class _StructureUnpickler(pickle.Unpickler):
    def __init__(self, data: bytes, place: Callable[[str], tuple[Path, int, int]]) -> None:
        super().__init__(io.BytesIO(data))
        self._place, self._budget = place, Budget(len(data))
        self._inert: dict[tuple[str, str], type[Inert]] = {}

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage_type, key = pid[:3]
        if kind != "storage" or not isinstance(storage_type, ElementType):
            raise pickle.UnpicklingError(f"unknown storage {pid!r}")
        return _Storage(str(key), storage_type)

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if module == "torch" and name in BY_NAME:
            return BY_NAME[name]
        known: dict[tuple[str, str], Any] = {
            ("torch", "Size"): self._budget.guarded(tuple),
            ("collections", "OrderedDict"): self._budget.guarded(PlainDict),
            ("builtins", "set"): self._budget.guarded(set),
            ("__builtin__", "set"): self._budget.guarded(set),
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
            ("torch._tensor", "_rebuild_from_type_v2"): lambda function, _, arguments, __: function(*arguments),
            ("deepspeed.runtime.zero.config", "ZeroStageEnum"): int,
            ("builtins", "getattr"): self._member,
            ("__builtin__", "getattr"): self._member,
        }
        return known.get((module, name)) or self._inert_class(module, name)

    def _inert_class(self, module: str, name: str) -> type[Inert]:
        if (module, name) not in self._inert:
            if len(self._inert) == MOST_CLASSES:
                raise pickle.UnpicklingError(f"it names more than {MOST_CLASSES:,} classes")
            members = {"__module__": f"inert.{module}", "budget": self._budget}
            self._inert[module, name] = type(name, (Inert,), members)
        return self._inert[module, name]

    def _member(self, kind: Any, name: Any) -> Any:
        # Python 3.11.0 to 3.11.3 write a member of an enumeration as getattr(class, name).
        return _ZERO_STAGES[name] if kind is int else self._inert_class("builtins", "getattr")(kind, name)

    def _tensor(self, storage: _Storage, offset: int, size: Any, stride: Any, *_: Any) -> StoredTensor:
        if len(size) > MOST_FIELDS:
            raise pickle.UnpicklingError(f"a tensor has {len(size):,} axes")
        shape = tuple(size)
        if offset < 0 or any(length < 0 for length in shape):
            raise pickle.UnpicklingError(f"a tensor of shape {list(shape)} starts at element {offset}")
        steps = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        if any(length > 1 and have != want for length, have, want in zip(shape, stride, steps, strict=True)):
            raise pickle.UnpicklingError(f"a tensor of shape {list(shape)} has strides {list(stride)}")
        path, start, num_bytes = self._place(storage.key)
        width = storage.dtype.itemsize
        if (offset + math.prod(shape)) * width > num_bytes:
            raise pickle.UnpicklingError(f"a tensor of shape {list(shape)} has only {num_bytes} bytes")
        return StoredTensor(path, start + offset * width, storage.dtype, shape)


def read_torch_file(path: Path, start: int = 0, length: int | None = None) -> Any:
    """The structure that torch.save wrote to a file, or to bytes [start, start + length) of one.

    Tensors are `StoredTensor`s. Raises UserError where that is no zip of torch.save.
    """
    try:
        with open(path, "rb") as handle:
            size = length if length is not None else path.stat().st_size - start
            return _read(path, handle, start, size)
    except _UNREADABLE as error:
        said = " ".join(f"{error}".split())
        raise UserError(f"{path}: not a readable file of torch.save ({said}); fetch or write it again") from error


def _read(path: Path, handle: IO[bytes], start: int, length: int) -> Any:
    with zipfile.ZipFile(_Window(handle, start, length)) as archive:
        members = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        if "byteorder" in members and archive.open(members["byteorder"]).read(8) != b"little":
            raise ValueError("it is big-endian")

        def place(key: str) -> tuple[Path, int, int]:
            info = members[f"data/{key}"]
            if info.compress_type != zipfile.ZIP_STORED:
                raise ValueError("it is compressed")
            # The local header's extra field (torch's padding) differs from that of the directory.
            handle.seek(start + info.header_offset)
            local = handle.read(_LOCAL_HEADER_BYTES)
            name_bytes, extra_bytes = int.from_bytes(local[26:28], "little"), int.from_bytes(local[28:30], "little")
            at = info.header_offset + _LOCAL_HEADER_BYTES + name_bytes + extra_bytes
            if at + info.file_size > length:
                raise ValueError(f"storage {key} ends behind the file")
            return path, start + at, info.file_size

        structure = members["data.pkl"]
        if structure.compress_type != zipfile.ZIP_STORED:
            raise ValueError("it is compressed")
        check_length(structure.file_size)
        data = archive.read(structure)
        check_opcodes(data)
        return _StructureUnpickler(data, place).load()
