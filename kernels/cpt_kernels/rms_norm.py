"""RMSNorm, and the addition of a residual with the RMSNorm of the sum (Zhang and Sennrich, arXiv 1910.07467).

All backends compute in fp32 and round once, where transformers' Llama rounds before and after the weight. The Triton
and the C kernels save the input (or the sum) and one number a row; the sum of the weight's gradient has a fixed order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cpt_kernels.native import ROWS_OF_A_PARTIAL_SUM, call, is_native, native_backend
from cpt_kernels.registry import Backend, Spec, choose, register, spec_of
from cpt_kernels.triton_support import launch_settings, next_power_of_2, triton_backend

OPERATION = "rms_norm"
ADD_OPERATION = "add_rms_norm"
MAX_COLUMNS = 8192
"""A wider row does not fit in the registers of a program whose backward pass also adds up the weight's gradient."""
_WIDE = "wide"


def rms_norm(
    x: Tensor, weight: Tensor, epsilon: float = 1e-6, weight_offset: float = 0.0, backend: str = "auto"
) -> Tensor:
    """x / sqrt(mean(x^2) + epsilon) * (weight + weight_offset), over the last axis.

    `x` is [..., columns], `weight` [columns]; the result has the shape and dtype of `x`. Gemma's weights have an offset
    of 1. Raises ValueError for shapes that do not fit, or a refused backend.
    """
    _check(x, weight)
    function = choose(OPERATION, backend, _spec(x)).function
    return function(x, weight, epsilon, weight_offset)


def add_rms_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    epsilon: float = 1e-6,
    weight_offset: float = 0.0,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """(residual + x, its `rms_norm`): `residual` has the shape and dtype of `x`. The sum is rounded before the norm."""
    _check(x, weight)
    if residual.shape != x.shape or residual.dtype != x.dtype:
        raise ValueError(f"residual {tuple(residual.shape)} {residual.dtype} must be as x {tuple(x.shape)} {x.dtype}")
    function = choose(ADD_OPERATION, backend, _spec(x)).function
    return function(x, residual, weight, epsilon, weight_offset)


def _check(x: Tensor, weight: Tensor) -> None:
    if x.ndim < 1 or weight.shape != x.shape[-1:]:
        raise ValueError(f"weight {tuple(weight.shape)} must be the last axis of x {tuple(x.shape)}")


def _spec(x: Tensor) -> Spec:
    return spec_of(x, _WIDE if x.shape[-1] > MAX_COLUMNS else "")


def _supports(spec: Spec) -> str | None:
    return f"the Triton kernel takes rows of up to {MAX_COLUMNS} columns" if _WIDE in spec.features else None


def reference(x: Tensor, weight: Tensor, epsilon: float = 1e-6, weight_offset: float = 0.0) -> Tensor:
    """The definition in torch, in fp32 or, for float64, in float64; differentiable by autograd."""
    wide = x if x.dtype == torch.float64 else x.float()
    rstd = torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    return (wide * rstd * (weight.to(wide.dtype) + weight_offset)).to(x.dtype)


def add_reference(
    x: Tensor, residual: Tensor, weight: Tensor, epsilon: float = 1e-6, weight_offset: float = 0.0
) -> tuple[Tensor, Tensor]:
    """`add_rms_norm` in torch."""
    total = residual + x
    return total, reference(total, weight, epsilon, weight_offset)


def _rows(x: Tensor) -> Tensor:
    """[rows, columns] with neighbouring columns, without a copy where strides allow it."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


@torch.library.custom_op("cpt_kernels::rms_norm", mutates_args=())
def _forward(x: Tensor, weight: Tensor, epsilon: float, weight_offset: float) -> tuple[Tensor, Tensor]:
    _, y, rstd = _launch_forward(x, None, weight, epsilon, weight_offset)
    return y, rstd


@_forward.register_fake
def _(x: Tensor, weight: Tensor, epsilon: float, weight_offset: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape[:-1], dtype=torch.float32)


@torch.library.custom_op("cpt_kernels::add_rms_norm", mutates_args=())
def _add_forward(
    x: Tensor, residual: Tensor, weight: Tensor, epsilon: float, weight_offset: float
) -> tuple[Tensor, Tensor, Tensor]:
    return _launch_forward(x, residual, weight, epsilon, weight_offset)


@_add_forward.register_fake
def _(
    x: Tensor, residual: Tensor, weight: Tensor, epsilon: float, weight_offset: float
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape), x.new_empty(x.shape[:-1], dtype=torch.float32)


@torch.library.custom_op("cpt_kernels::rms_norm_backward", mutates_args=())
def _backward(
    grad_y: Tensor, grad_sum: Tensor | None, x: Tensor, weight: Tensor, rstd: Tensor, weight_offset: float
) -> tuple[Tensor, Tensor]:
    from cpt_kernels.jit.rms_norm import rms_norm_backward

    rows, grad_rows = _rows(x), _rows(grad_y)
    sum_rows = grad_rows if grad_sum is None else _rows(grad_sum)
    num_rows, num_columns = rows.shape
    grad_x = torch.empty_like(rows, memory_format=torch.contiguous_format)
    if is_native(rows):
        partial = rows.new_empty((-(-num_rows // ROWS_OF_A_PARTIAL_SUM), num_columns))
        strides = (grad_rows.stride(0), sum_rows.stride(0), rows.stride(0))
        given = (grad_rows, None if grad_sum is None else sum_rows, rows, weight.contiguous(), rstd, grad_x, partial)
        call("rms_norm_backward", rows.numel(), *given, num_rows, num_columns, *strides, weight_offset)
        return grad_x.view(x.shape), partial.sum(0)
    block = next_power_of_2(num_columns)
    settings = dict(launch_settings("rms_norm_backward", block))
    num_programs = settings.pop("num_programs")
    rows_per_program = -(-num_rows // num_programs) or 1
    num_programs = -(-num_rows // rows_per_program)
    partial = torch.empty((num_programs, num_columns), dtype=torch.float32, device=x.device)
    if num_programs:
        rms_norm_backward[(num_programs,)](
            grad_rows,
            sum_rows,
            rows,
            weight,
            rstd,
            grad_x,
            partial,
            grad_rows.stride(0),
            sum_rows.stride(0),
            rows.stride(0),
            num_rows,
            num_columns,
            rows_per_program,
            weight_offset,
            HAS_GRAD_SUM=grad_sum is not None,
            BLOCK=block,
            **settings,
        )
    return grad_x.view(x.shape), partial.sum(0).to(weight.dtype)


@_backward.register_fake
def _(
    grad_y: Tensor, grad_sum: Tensor | None, x: Tensor, weight: Tensor, rstd: Tensor, weight_offset: float
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _launch_forward(
    x: Tensor, residual: Tensor | None, weight: Tensor, epsilon: float, weight_offset: float
) -> tuple[Tensor, Tensor, Tensor]:
    from cpt_kernels.jit.rms_norm import rms_norm_forward

    rows = _rows(x)
    added = rows if residual is None else _rows(residual)
    y = torch.empty_like(rows, memory_format=torch.contiguous_format)
    total = y if residual is None else torch.empty_like(y)
    rstd = torch.empty(rows.shape[0], dtype=torch.float32, device=x.device)
    if is_native(rows):
        given = (rows, None if residual is None else added, weight.contiguous(), total, y, rstd)
        sizes = (*rows.shape, rows.stride(0), added.stride(0))
        call("rms_norm_forward", rows.numel(), *given, *sizes, epsilon, weight_offset)
        return total.view(x.shape), y.view(x.shape), rstd.view(x.shape[:-1])
    block = next_power_of_2(rows.shape[1])
    if rows.shape[0]:
        rms_norm_forward[(rows.shape[0],)](
            rows,
            added,
            weight,
            total,
            y,
            rstd,
            rows.stride(0),
            added.stride(0),
            rows.shape[1],
            epsilon,
            weight_offset,
            HAS_RESIDUAL=residual is not None,
            BLOCK=block,
            **launch_settings("rms_norm_forward", block),
        )
    return total.view(x.shape), y.view(x.shape), rstd.view(x.shape[:-1])


def _save(ctx, inputs, output):
    x, weight, _, weight_offset = inputs
    ctx.save_for_backward(x, weight, output[1])
    ctx.weight_offset = weight_offset


def _differentiate(ctx, grad_y, _):
    x, weight, rstd = ctx.saved_tensors
    grad_x, grad_weight = _backward(grad_y, None, x, weight, rstd, ctx.weight_offset)
    return grad_x, grad_weight, None, None


def _save_sum(ctx, inputs, output):
    ctx.save_for_backward(output[0], inputs[2], output[2])
    ctx.weight_offset = inputs[4]


def _differentiate_sum(ctx, grad_sum, grad_y, _):
    total, weight, rstd = ctx.saved_tensors
    grad, grad_weight = _backward(grad_y, grad_sum, total, weight, rstd, ctx.weight_offset)
    return grad, grad, grad_weight, None, None


_forward.register_autograd(_differentiate, setup_context=_save)
_add_forward.register_autograd(_differentiate_sum, setup_context=_save_sum)


def _kernel(x: Tensor, weight: Tensor, epsilon: float, weight_offset: float) -> Tensor:
    return _forward(x, weight, epsilon, weight_offset)[0]


def _add_kernel(
    x: Tensor, residual: Tensor, weight: Tensor, epsilon: float, weight_offset: float
) -> tuple[Tensor, Tensor]:
    total, y, _ = _add_forward(x, residual, weight, epsilon, weight_offset)
    return total, y


register(OPERATION, triton_backend(OPERATION, _kernel, _supports))
register(OPERATION, native_backend(OPERATION, _kernel))
register(OPERATION, Backend("torch", lambda spec: None, reference))
register(ADD_OPERATION, triton_backend(ADD_OPERATION, _add_kernel, _supports))
register(ADD_OPERATION, native_backend(ADD_OPERATION, _add_kernel))
register(ADD_OPERATION, Backend("torch", lambda spec: None, add_reference))
