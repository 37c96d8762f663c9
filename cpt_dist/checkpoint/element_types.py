"""Types of elements by name, and the conversions between them that an export needs, without torch.

Moving bytes from one file to another needs no tensor library, and importing one takes longer than the move of a small
model. Values are little-endian and pass as unsigned integers of their width, since numpy has no bfloat16. Arithmetic
is not done here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

_RAW = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


@dataclass(frozen=True)
class ElementType:
    """A type of elements of tensors."""

    name: str
    """As torch calls it."""
    code: str
    """As safetensors files call it."""
    itemsize: int
    """Bytes."""
    is_floating_point: bool

    @property
    def raw(self) -> Any:
        """numpy's unsigned integer of the same width."""
        return _RAW[self.itemsize]


FLOAT32 = ElementType("float32", "F32", 4, True)
BFLOAT16 = ElementType("bfloat16", "BF16", 2, True)
BY_NAME = {
    one.name: one
    for one in (
        FLOAT32,
        BFLOAT16,
        ElementType("float64", "F64", 8, True),
        ElementType("float16", "F16", 2, True),
        ElementType("int64", "I64", 8, False),
        ElementType("int32", "I32", 4, False),
        ElementType("int16", "I16", 2, False),
        ElementType("int8", "I8", 1, False),
        ElementType("uint8", "U8", 1, False),
        ElementType("bool", "BOOL", 1, False),
    )
}
"""Every type that files of weights may hold here."""
WRITTEN = {"fp32": FLOAT32, "bf16": BFLOAT16}
"""The types of exported weights by the name of the setting."""


def converted(values: np.ndarray, source: ElementType, target: ElementType) -> np.ndarray:
    """Raw values of type `source`, flat, as raw values of type `target`: itself, fp32 or bf16.

    Rounded to nearest, ties to even, as torch does. Raises ValueError for another target or integers.
    """
    if source == target:
        return values
    if not source.is_floating_point or target not in (FLOAT32, BFLOAT16):
        raise ValueError(f"{source.name} is not written as {target.name}")
    if source == BFLOAT16:
        wide = values.astype(np.uint32) << np.uint32(16)
    elif source == FLOAT32:
        wide = values
    else:
        with np.errstate(over="ignore", invalid="ignore"):  # too large becomes infinite, as in torch
            wide = values.view(source.name).astype(np.float32).view(np.uint32)
    return wide if target == FLOAT32 else _rounded(wide)


def _rounded(bits: np.ndarray) -> np.ndarray:
    """The upper halves of fp32 values, rounded to nearest, ties to even."""
    carry = bits >> np.uint32(16)
    carry &= np.uint32(1)
    carry += np.uint32(0x7FFF)
    carry += bits
    upper = np.ascontiguousarray(carry.view(np.uint16)[1::2])
    # Adding can carry a NaN into the exponent of something else; it keeps its upper half and becomes quiet.
    nan = np.isnan(bits.view(np.float32))
    if nan.any():
        upper[nan] = (bits[nan] >> np.uint32(16)).astype(np.uint16) | np.uint16(0x40)
    return upper
