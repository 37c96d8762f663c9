"""Triton's interpreter computes bfloat16 as if it were an unsigned integer; this repairs it.

In Triton 3.7.1 to 3.9.0 (upstream issues 10945, 11584 and 11604) a bf16 product of matrices multiplies bit patterns,
elementwise arithmetic adds them, and the conversion from fp32 cuts bits off instead of rounding to the nearest even.
The repair widens every bf16 operand to fp32 and rounds results as a GPU does. And it takes out what follows a launch:
the interpreter copies every storage that it was given onto itself, tensors on the CPU too. Nothing else changes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_MARK = "_cpt_kernels_repaired"
_QUIET_NAN = np.uint16(0x7FC0)


def widen(bits: np.ndarray) -> np.ndarray:
    """The fp32 values of bf16 bit patterns (uint16)."""
    return np.left_shift(np.asarray(bits).astype(np.uint32), np.uint32(16)).view(np.float32)


def narrow(values: np.ndarray) -> np.ndarray:
    """The bf16 bit patterns (uint16) next to fp32 values, ties to even."""
    values = np.asarray(values, dtype=np.float32)
    bits = values.view(np.uint32)
    odd = np.right_shift(bits, np.uint32(16)) & np.uint32(1)
    rounded = np.right_shift(bits + np.uint32(0x7FFF) + odd, np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(values), _QUIET_NAN, rounded).astype(np.uint16)


def repair() -> None:
    """Make bf16 right in this process's interpreter. A second call does nothing."""
    import triton.language as tl
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    if getattr(builder, _MARK, False):
        return
    handle = interpreter.TensorHandle
    cast, convert, dot, binary = (
        builder.cast_impl,
        builder.create_fp_to_fp,
        builder.create_dot,
        builder.binary_op,
    )

    def is_bf16(operand: Any) -> bool:
        return operand.dtype.scalar == tl.bfloat16

    def wide(operand: Any) -> Any:
        return handle(widen(operand.data), tl.float32) if is_bf16(operand) else operand

    def repaired_cast(self: Any, source: Any, target: Any) -> Any:
        if target.scalar == tl.bfloat16 and not is_bf16(source):
            return handle(narrow(source.data), tl.bfloat16)
        if is_bf16(source) and target.scalar != tl.bfloat16:
            source = wide(source)
            if target.scalar == tl.float32:
                return source
        return cast(self, source, target)

    def repaired_convert(self: Any, source: Any, target: Any, rounding: Any) -> Any:
        plain = (tl.float16, tl.bfloat16, tl.float32)
        if tl.bfloat16 in (source.dtype.scalar, target.scalar) and {source.dtype.scalar, target.scalar} <= set(plain):
            return repaired_cast(self, source, target)
        return convert(self, source, target, rounding)

    def repaired_dot(self: Any, left: Any, right: Any, *others: Any) -> Any:
        return dot(self, wide(left), wide(right), *others)

    def repaired_binary(self: Any, left: Any, right: Any, operation: Any) -> Any:
        if not is_bf16(left) or operation in (np.bitwise_and, np.bitwise_or, np.bitwise_xor):
            return binary(self, left, right, operation)
        result = operation(widen(left.data), widen(right.data))
        return handle(result, tl.int1) if result.dtype == np.bool_ else handle(narrow(result), tl.bfloat16)

    builder.cast_impl, builder.create_fp_to_fp = repaired_cast, repaired_convert
    builder.create_dot, builder.binary_op = repaired_dot, repaired_binary
    executor = interpreter.GridExecutor
    restore = executor._restore_args_dev

    def restored_from_elsewhere(self: Any, given: Any, used: Any, named: Any, named_used: Any) -> None:
        tensors = [one for one in (*given, *named.values()) if hasattr(one, "device")]
        if any(tensor.device.type != "cpu" for tensor in tensors):
            restore(self, given, used, named, named_used)

    executor._restore_args_dev = restored_from_elsewhere
    setattr(builder, _MARK, True)
