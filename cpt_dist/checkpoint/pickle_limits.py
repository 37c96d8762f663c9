"""Bounds on the memory that reading a pickle takes, for files that others have written.

An unpickler that knows few classes runs nothing foreign, but a pickle of some bytes can still ask it for a table of
gigabytes, or for copies of copies. Here lengths and indices are looked at before it starts, and what it builds is
counted, so that its memory is at most a fixed multiple of the pickle's own size. Which classes are known is decided
elsewhere.
"""

from __future__ import annotations

import pickle
import pickletools
from collections.abc import Callable, Sized
from pathlib import Path
from typing import Any

MOST_BYTES = 1 << 30
"""Of a pickle. The index of three million pieces of tensors has about as many, and takes ten times that in memory."""
MOST_FIELDS = 64
"""Of an object in it, and of the axes of a tensor. What such files hold has about ten."""
_ELEMENTS_PER_BYTE = 4
"""Copied into containers. An honest pickle copies less than one: what it holds twice is one object."""
MOST_CLASSES = 10_000
"""Named in it. A checkpoint with its scheduler and arguments names some dozens."""

_LINE, _TWO_LINES = -1, -2
_PREFIXED = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
"""How wide the length is that stands before an opcode's argument."""


def _widths() -> tuple[list[int | None], list[int]]:
    """For each byte: the length of its argument as an opcode or a kind of lines (None: no opcode); of its prefix."""
    widths: list[int | None] = [None] * 256
    prefixes = [0] * 256
    for opcode in pickletools.opcodes:
        argument, code = opcode.arg, ord(opcode.code)
        length = 0 if argument is None else argument.n
        if argument is not None and length in _PREFIXED:
            prefixes[code], length = _PREFIXED[length], 0
        elif length == pickletools.UP_TO_NEWLINE:
            assert argument is not None
            length = _TWO_LINES if argument.name == "stringnl_noescape_pair" else _LINE
        widths[code] = length
    return widths, prefixes


_WIDTHS, _PREFIXES = _widths()
_STOP, _PUT, _LONG_BINPUT = pickle.STOP[0], pickle.PUT[0], pickle.LONG_BINPUT[0]


def check_opcodes(data: bytes) -> None:
    """Raise UnpicklingError where a pickle names a length or an index that its own bytes can't fill."""
    at, size = 0, len(data)
    while at < size:
        code = data[at]
        at += 1
        width = _WIDTHS[code]
        if width is None:
            raise pickle.UnpicklingError(f"byte {at - 1} is no opcode")
        if prefix := _PREFIXES[code]:
            length, left = int.from_bytes(data[at : at + prefix], "little"), size - at - prefix
            if length > left:
                raise pickle.UnpicklingError(f"byte {at - 1} says that {length:,} bytes follow, there are {left:,}")
            width = prefix + length
        elif width < 0:
            end = at
            for _ in range(-width):
                end = data.find(b"\n", end) + 1 or size
            if code == _PUT:
                _check_index(int(data[at:end]), at)
            width = end - at
        elif code == _LONG_BINPUT:
            _check_index(int.from_bytes(data[at : at + 4], "little"), at)
        elif code == _STOP:
            return
        at += width


def _check_index(index: int, at: int) -> None:
    # Each object that is remembered took an opcode.
    if index > at:
        raise pickle.UnpicklingError(f"byte {at - 1} asks for a table of {index:,} objects, {at:,} bytes are read")


class Budget:
    """How many elements may still be copied into containers while a pickle of `num_bytes` is read."""

    def __init__(self, num_bytes: int) -> None:
        self._left = _ELEMENTS_PER_BYTE * num_bytes

    def spend(self, *values: Any) -> None:
        """Count the elements of those of `values` that have some. Raises UnpicklingError where they are too many."""
        self._left -= sum(len(value) for value in values if isinstance(value, Sized))
        if self._left < 0:
            raise pickle.UnpicklingError("its containers have far more elements than it has bytes")

    def guarded(self, kind: Callable[..., Any]) -> Callable[..., Any]:
        """`kind`, a container, as a function that pays for what it makes."""

        def make(*arguments: Any) -> Any:
            self.spend(*arguments)
            return kind(*arguments)

        return make


class PlainDict(dict[Any, Any]):
    """What an ordered dictionary becomes. Its attributes, such as the versions that torch notes there, are left out."""

    def __setstate__(self, state: Any) -> None:
        """Leave them out."""


def check_length(num_bytes: int) -> None:
    """Raise UnpicklingError for a pickle of absurd length."""
    if num_bytes > MOST_BYTES:
        raise pickle.UnpicklingError(f"it has {num_bytes:,} bytes, more than the {MOST_BYTES:,} that are read")


def read_pickle_bytes(path: Path) -> bytes:
    """The content of a file that is a pickle, of which lengths and indices are checked.

    Raises UnpicklingError where they, or that of the file, are absurd.
    """
    check_length(path.stat().st_size)
    data = path.read_bytes()
    check_opcodes(data)
    return data
