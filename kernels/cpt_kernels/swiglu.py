"""The elementwise part of a gated MLP, silu(gate) * up (Shazeer, arXiv 2002.05202).

Plain torch keeps silu(gate) for the backward pass beside both inputs; here only the inputs are kept and the rest is
computed again. The products with matrices around it are not touched.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu

from cpt_kernels.native import call, is_native, native_backend
from cpt_kernels.registry import Backend, choose, register, spec_of
from cpt_kernels.triton_support import launch_settings, triton_backend

OPERATION = "swiglu"


def swiglu(gate: Tensor, up: Tensor, backend: str = "auto") -> Tensor:
    """silu(gate) * up, computed in fp32 and rounded once.

    Both are [..., columns] of one shape and dtype, as is the result. Raises ValueError where they differ, or for a
    refused backend.
    """
    if gate.shape != up.shape or gate.dtype != up.dtype:
        raise ValueError(f"gate {tuple(gate.shape)} {gate.dtype} must be as up {tuple(up.shape)} {up.dtype}")
    return choose(OPERATION, backend, spec_of(gate)).function(gate, up)


def reference(gate: Tensor, up: Tensor) -> Tensor:
    """The definition in torch, in fp32 or, for float64, in float64; differentiable by autograd."""
    if gate.dtype in (torch.float32, torch.float64):
        return silu(gate) * up
    return (silu(gate.float()) * up.float()).to(gate.dtype)


def _rows(x: Tensor) -> Tensor:
    rows = x.reshape(-1, x.shape[-1]) if x.ndim else x.reshape(1, 1)
    return rows if rows.stride(1) == 1 else rows.contiguous()


@torch.library.custom_op("cpt_kernels::swiglu", mutates_args=())
def _forward(gate: Tensor, up: Tensor) -> Tensor:
    gates, ups = _rows(gate), _rows(up)
    y = torch.empty_like(gates, memory_format=torch.contiguous_format)
    if is_native(gates):
        call("swiglu_forward", gates.numel(), gates, ups, y, *gates.shape, gates.stride(0), ups.stride(0))
        return y.view(gate.shape)
    from cpt_kernels.jit.swiglu import swiglu_forward

    settings = launch_settings("swiglu_forward", gates.shape[1])
    if y.numel():
        grid = (gates.shape[0], -(-gates.shape[1] // settings["BLOCK"]))
        swiglu_forward[grid](gates, ups, y, gates.stride(0), ups.stride(0), gates.shape[1], **settings)
    return y.view(gate.shape)


@_forward.register_fake
def _(gate: Tensor, up: Tensor) -> Tensor:
    return gate.new_empty(gate.shape)


@torch.library.custom_op("cpt_kernels::swiglu_backward", mutates_args=())
def _backward(grad_y: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    grads, gates, ups = _rows(grad_y), _rows(gate), _rows(up)
    grad_gate = torch.empty_like(gates, memory_format=torch.contiguous_format)
    grad_up = torch.empty_like(grad_gate)
    if is_native(gates):
        strides = (grads.stride(0), gates.stride(0), ups.stride(0))
        call("swiglu_backward", gates.numel(), grads, gates, ups, grad_gate, grad_up, *gates.shape, *strides)
        return grad_gate.view(gate.shape), grad_up.view(gate.shape)
    from cpt_kernels.jit.swiglu import swiglu_backward

    settings = launch_settings("swiglu_backward", gates.shape[1])
    if grad_gate.numel():
        grid = (gates.shape[0], -(-gates.shape[1] // settings["BLOCK"]))
        strides = (grads.stride(0), gates.stride(0), ups.stride(0))
        swiglu_backward[grid](grads, gates, ups, grad_gate, grad_up, *strides, gates.shape[1], **settings)
    return grad_gate.view(gate.shape), grad_up.view(gate.shape)


@_backward.register_fake
def _(grad_y: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    return gate.new_empty(gate.shape), gate.new_empty(gate.shape)


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _differentiate(ctx, grad_y):
    return _backward(grad_y, *ctx.saved_tensors)


_forward.register_autograd(_differentiate, setup_context=_save)

register(OPERATION, triton_backend(OPERATION, _forward))
register(OPERATION, native_backend(OPERATION, _forward))
register(OPERATION, Backend("torch", lambda spec: None, reference))
