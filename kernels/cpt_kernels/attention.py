"""Causal attention of packed documents: in Triton for GPUs on which flash-attn is missing, in C for CPUs.

No token attends across a border. Key heads may be fewer than query heads (grouped queries, arXiv 2305.13245), a sliding
window is possible, and the first document may have keys in front of its first query, as on a rank that holds a later
part of a row. Where flash-attn runs it is the better choice: it uses what each GPU generation has.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from cpt_kernels.native import (
    QUERIES_OF_A_BLOCK,
    SCRATCH_OF_A_THREAD,
    call,
    is_native,
    native_backend,
    native_supports,
    sgemm_address,
)
from cpt_kernels.registry import Backend, Spec, choose, register, spec_of
from cpt_kernels.triton_support import launch_settings, next_power_of_2, triton_backend

OPERATION = "document_attention"
MAX_HEAD_DIM = 128
_ALL_THREADS = 1 << 30
"""Products inside a parallel region have one thread each, so the kernel always opens one."""
WIDE_HEADS = f"head_dim>{MAX_HEAD_DIM}"


def document_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    *,
    scale: float | None = None,
    window: int | None = None,
    keys_before: int = 0,
    backend: str = "auto",
) -> Tensor:
    """Attention of each token to the tokens of its document up to itself: [tokens, heads, head_dim].

    Args:
        query: [heads, tokens, head_dim], any strides.
        key: [key heads, keys_before + tokens, head_dim]; the number of query heads is a multiple. `value` alike.
        cu_seqlens: int32 [documents + 1], borders of the queries, from 0 to tokens.
        scale: factor of the scores, by default head_dim ** -0.5.
        window: a token attends to itself and the window - 1 keys before it, or None.
        keys_before: keys in front of the first query, of the first document.

    Raises ValueError for shapes that do not fit, or a refused backend.
    """
    if query.ndim != 3 or key.shape != value.shape or key.shape[1] != query.shape[1] + keys_before:
        raise ValueError(f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)} do not fit")
    if query.shape[2] != key.shape[2] or query.shape[0] % key.shape[0]:
        raise ValueError(f"{query.shape[0]} query heads and {key.shape[0]} key heads of {tuple(key.shape)} do not fit")
    if window is not None and window < 1:
        raise ValueError(f"window {window} must be at least 1; None turns it off")
    features = WIDE_HEADS if query.shape[2] > MAX_HEAD_DIM else ""
    function = choose(OPERATION, backend, spec_of(query, features)).function
    factor = query.shape[2] ** -0.5 if scale is None else scale
    return function(query, key, value, cu_seqlens, factor, window, keys_before)


def first_keys(cu_seqlens: Tensor, num_tokens: int, window: int | None, keys_before: int) -> Tensor:
    """int32 [tokens]: the first key that each query sees; rising."""
    query = torch.arange(num_tokens, device=cu_seqlens.device)
    document = torch.searchsorted(cu_seqlens[1:], query, right=True)
    first = cu_seqlens[document].long() + torch.where(cu_seqlens[document] == 0, 0, keys_before)
    if window is not None:
        first = torch.maximum(first, query + keys_before - window + 1)
    return first.to(torch.int32)


def last_queries(cu_seqlens: Tensor, num_tokens: int, window: int | None, keys_before: int) -> Tensor:
    """int32 [keys]: one past the last query that sees each key; rising."""
    key = torch.arange(-keys_before, num_tokens, device=cu_seqlens.device)
    document = torch.searchsorted(cu_seqlens[1:], key.clamp(min=0), right=True)
    last = cu_seqlens[document + 1].long()
    if window is not None:
        last = torch.minimum(last, (key + window).clamp(min=0))
    return last.to(torch.int32)


def reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    scale: float,
    window: int | None = None,
    keys_before: int = 0,
) -> Tensor:
    """The definition with a whole mask, by torch's SDPA; what backends are tested with. Differentiable by autograd."""
    first = first_keys(cu_seqlens, query.shape[1], window, keys_before).long()
    keys = torch.arange(key.shape[1], device=query.device)
    own = torch.arange(query.shape[1], device=query.device) + keys_before
    mask = (keys[None] <= own[:, None]) & (keys[None] >= first[:, None])
    groups = query.shape[0] // key.shape[0]
    key, value = (part.repeat_interleave(groups, dim=0) for part in (key, value))
    attended = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    return attended.transpose(0, 1)


def _neighbours(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _strides(*tensors: Tensor) -> list[int]:
    """Head and token strides of [heads, tokens, head_dim] tensors, one after the other."""
    return [stride for tensor in tensors for stride in tensor.stride()[:2]]


def _constants(query: Tensor, key: Tensor, kernel: str) -> dict[str, int | str]:
    dim = query.shape[2]
    block = max(next_power_of_2(dim), 16)
    shape = {"GROUPS": query.shape[0] // key.shape[0], "DIM": dim, "BLOCK_D": block}
    # With fp32 operands a GPU would round to tf32 unless told not to; for 16 bits the word changes nothing.
    return {**shape, "PRECISION": "ieee", **launch_settings(kernel, block)}


@torch.library.custom_op("cpt_kernels::document_attention", mutates_args=())
def _forward(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, scale: float, window: int, keys_before: int
) -> tuple[Tensor, Tensor]:
    query, key, value = _neighbours(query), _neighbours(key), _neighbours(value)
    heads, num_queries, _ = query.shape
    out = query.new_empty((num_queries, heads, query.shape[2]))
    lse = torch.empty((heads, num_queries), dtype=torch.float32, device=query.device)
    if is_native(query):
        _native_forward(query, key, value, cu_seqlens, out, lse, scale, window, keys_before)
    elif query.numel():
        from cpt_kernels.jit.attention import attention_forward

        first = first_keys(cu_seqlens, num_queries, window or None, keys_before)
        constants = _constants(query, key, "attention_forward")
        attention_forward[(-(-num_queries // int(constants["BLOCK_M"])), heads)](
            query,
            key,
            value,
            out,
            lse,
            first,
            *_strides(query, key, value, out.transpose(0, 1)),
            num_queries,
            key.shape[1],
            keys_before,
            scale * math.log2(math.e),
            **constants,
        )
    return out, lse


@_forward.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, scale: float, window: int, keys_before: int
) -> tuple[Tensor, Tensor]:
    heads, num_queries, dim = query.shape
    return query.new_empty((num_queries, heads, dim)), query.new_empty((heads, num_queries), dtype=torch.float32)


def _native_scratch(query: Tensor) -> Tensor:
    return query.new_empty((torch.get_num_threads(), SCRATCH_OF_A_THREAD))


def _native_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    window: int,
    keys_before: int,
) -> None:
    heads, num_queries, size = query.shape
    first = first_keys(cu_seqlens, num_queries, window or None, keys_before)
    blocks = [
        (start, min(start + QUERIES_OF_A_BLOCK, stop))
        for begin, stop in pairwise(cu_seqlens.tolist())
        for start in range(begin, stop, QUERIES_OF_A_BLOCK)
    ]
    table = torch.tensor(blocks, dtype=torch.int64)
    tensors = (query, key, value, out, lse, first, table, sgemm_address(), _native_scratch(query))
    sizes = (len(blocks), num_queries, heads, heads // key.shape[0], size, keys_before)
    call("attention_forward", _ALL_THREADS, *tensors, *sizes, *_strides(query, key, value), scale)


def _native_backward(
    inputs: tuple[Tensor, Tensor, Tensor, Tensor],
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    grads: tuple[Tensor, Tensor, Tensor],
    scale: float,
    window: int,
    keys_before: int,
) -> None:
    _, query, key, _ = inputs
    heads, num_queries, size = query.shape
    first = first_keys(cu_seqlens, num_queries, window or None, keys_before)
    borders = cu_seqlens.to(torch.int32).contiguous()
    parts = query.new_empty((2, heads, key.shape[1], size))
    tensors = (*inputs, out, lse, first, borders, sgemm_address(), _native_scratch(query), parts, *grads)
    sizes = (len(borders) - 1, num_queries, heads, heads // key.shape[0], size, keys_before)
    call("attention_backward", _ALL_THREADS, *tensors, *sizes, *_strides(*inputs), scale)


@torch.library.custom_op("cpt_kernels::document_attention_backward", mutates_args=())
def _backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    scale: float,
    window: int,
    keys_before: int,
) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = _neighbours(query), _neighbours(key), _neighbours(value)
    heads, num_queries, _ = query.shape
    key_heads, num_keys, _ = key.shape
    grads = _backward_like(query), _backward_like(key), _backward_like(value)
    if not query.numel():
        return grads[0].zero_(), grads[1].zero_(), grads[2].zero_()
    grad_out = _neighbours(grad_out.transpose(0, 1))
    if is_native(query):
        inputs = (grad_out, query, key, value)
        _native_backward(inputs, out, lse, cu_seqlens, grads, scale, window, keys_before)
        return grads
    from cpt_kernels.jit.attention import attention_backward_key, attention_backward_query

    out = out.transpose(0, 1)
    delta = torch.empty_like(lse)
    sizes = (num_queries, num_keys, keys_before, scale * math.log2(math.e), scale)
    constants = _constants(query, key, "attention_backward_query")
    attention_backward_query[(-(-num_queries // int(constants["BLOCK_M"])), heads)](
        query,
        key,
        value,
        out,
        grad_out,
        lse,
        delta,
        first_keys(cu_seqlens, num_queries, window or None, keys_before),
        grads[0],
        *_strides(query, key, value, out, grad_out, grads[0]),
        *sizes,
        **constants,
    )
    constants = _constants(query, key, "attention_backward_key")
    attention_backward_key[(-(-num_keys // int(constants["BLOCK_N"])), key_heads)](
        query,
        key,
        value,
        grad_out,
        lse,
        delta,
        last_queries(cu_seqlens, num_queries, window or None, keys_before),
        grads[1],
        grads[2],
        *_strides(query, key, value, grad_out, grads[1], grads[2]),
        *sizes,
        **constants,
    )
    return grads


def _backward_like(x: Tensor) -> Tensor:
    """An empty gradient of [heads, tokens, head_dim] whose tokens lie apart, as projections read them."""
    return x.new_empty((x.shape[1], x.shape[0], x.shape[2])).transpose(0, 1)


@_backward.register_fake
def _(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    scale: float,
    window: int,
    keys_before: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return _backward_like(query), _backward_like(key), _backward_like(value)


def _save(ctx, inputs, output):
    query, key, value, cu_seqlens, *ctx.options = inputs
    ctx.save_for_backward(query, key, value, *output, cu_seqlens)


def _differentiate(ctx, grad_out, _):
    return (*_backward(grad_out, *ctx.saved_tensors, *ctx.options), None, None, None, None)


_forward.register_autograd(_differentiate, setup_context=_save)


def _kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    scale: float,
    window: int | None,
    keys_before: int,
) -> Tensor:
    return _forward(query, key, value, cu_seqlens, scale, window or 0, keys_before)[0]


def supports(spec: Spec) -> str | None:
    """The reason why the Triton kernel does not take a request, or None."""
    if spec.device == "cuda" and spec.dtype == "float32":
        # Compiled ahead of time it has no matrix instructions and spills thousands of bytes a thread.
        return "in fp32 the Triton kernel would run on the ordinary units of a GPU; use bf16, or torch's attention"
    return f"the Triton kernel takes heads of up to {MAX_HEAD_DIM} dimensions" if WIDE_HEADS in spec.features else None


def native_attention_supports(spec: Spec) -> str | None:
    """The reason why the C kernel does not take a request, or None."""
    if spec.device == "cpu" and sgemm_address() is None:
        return "this build of torch shows no sgemm to other libraries"
    return native_supports(spec)


register(OPERATION, triton_backend(OPERATION, _kernel, supports))
register(OPERATION, native_backend(OPERATION, _kernel, native_attention_supports))
register(OPERATION, Backend("torch", lambda spec: None, reference))
