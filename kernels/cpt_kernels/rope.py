"""Rotary position embedding (Su et al., arXiv 2104.09864) with fp32 tables and one rounding.

transformers casts cosines and sines to the model's dtype, and in bf16 the error of a fixed distance then grows with the
position. Which type of RoPE the tables are of (linear, YaRN, Llama 3 …) this operation does not know. Positions may be
packed documents' or start at an offset, as on a rank that holds a later part of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cpt_kernels.native import call, is_native, native_backend
from cpt_kernels.registry import Backend, choose, register, spec_of
from cpt_kernels.triton_support import launch_settings, next_power_of_2, triton_backend

OPERATION = "rope"


def rope(
    query: Tensor,
    key: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None = None,
    offset: int = 0,
    *,
    overwrite_gradients: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Queries and keys turned by their positions.

    Args:
        query: [heads, tokens, head_dim]; `key` may have another number of heads. Any strides, but the last is 1.
        cos: fp32 [positions, half], row p for position p; `sin` alike. Of each head dimensions i and i + half turn
            together, those from 2 * half on are left as they are.
        positions: int [tokens], rows of the tables; None: the rows 0, 1, 2, … The Triton kernel gives NaN for a row
            that the tables do not have.
        offset: added to every position.
        overwrite_gradients: the backward pass may turn the gradients back where they lie. Only where nothing else reads
            them, as between a projection and attention.

    Raises ValueError for shapes that do not fit, or a refused backend.
    """
    half = cos.shape[-1]
    if query.ndim != 3 or key.ndim != 3 or query.shape[1:] != key.shape[1:] or 2 * half > query.shape[2]:
        raise ValueError(f"query {tuple(query.shape)}, key {tuple(key.shape)}, cos {tuple(cos.shape)} do not fit")
    exact = torch.float64 if query.dtype == torch.float64 else torch.float32
    if cos.ndim != 2 or cos.shape != sin.shape or cos.dtype != sin.dtype or cos.dtype != exact:
        raise ValueError(f"cos {tuple(cos.shape)} {cos.dtype} and sin must be tables [positions, half] in fp32")
    if positions is not None and positions.shape != query.shape[1:2]:
        raise ValueError(f"positions {tuple(positions.shape)} must be [{query.shape[1]}], one a token")
    function = choose(OPERATION, backend, spec_of(query)).function
    return function(query, key, cos, sin, positions, offset, overwrite_gradients)


def reference(
    query: Tensor,
    key: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None = None,
    offset: int = 0,
    overwrite_gradients: bool = False,
) -> tuple[Tensor, Tensor]:
    """The definition in torch, in fp32 or, for float64, in float64; differentiable by autograd."""
    if positions is None:
        positions = torch.arange(query.shape[1], device=query.device)
    rows = positions + offset
    cos, sin = cos[rows], sin[rows]
    return _turn(query, cos, sin), _turn(key, cos, sin)


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = cos.shape[1]
    exact = torch.float64 if x.dtype == torch.float64 else torch.float32
    low, high, rest = x[..., :half].to(exact), x[..., half : 2 * half].to(exact), x[..., 2 * half :]
    return torch.cat([(low * cos - high * sin).to(x.dtype), (high * cos + low * sin).to(x.dtype), rest], dim=-1)


def _launch(
    query: Tensor,
    key: Tensor,
    query_out: Tensor,
    key_out: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None,
    offset: int,
    inverse: bool,
) -> None:
    if is_native(query):
        rows = None if positions is None else positions.to(torch.int64).contiguous()
        for x, out in ((query, query_out), (key, key_out)):
            sizes = (x.shape[1], x.shape[0], x.shape[2], cos.shape[1])
            strides = (x.stride(1), x.stride(0), out.stride(1), out.stride(0), cos.stride(0), cos.shape[0])
            direction = -1.0 if inverse else 1.0
            call("rope_turn", x.numel(), x, out, cos, sin, rows, offset, *sizes, *strides, direction)
        return
    from cpt_kernels.jit.rope import rope_turn

    num_query_heads, num_tokens, head_dim = query.shape
    half = cos.shape[1]
    rest = head_dim - 2 * half
    blocks = {"QUERY_HEADS": num_query_heads, "KEY_HEADS": key.shape[0], "HALF": half, "REST": rest or 1}
    blocks = {name: next_power_of_2(size) for name, size in blocks.items()}
    if not num_tokens:
        return
    rope_turn[(num_tokens,)](
        query,
        key,
        query_out,
        key_out,
        cos,
        sin,
        cos if positions is None else positions,
        *(stride for tensor in (query, key, query_out, key_out) for stride in (tensor.stride(1), tensor.stride(0))),
        cos.stride(0),
        cos.shape[0],
        offset,
        num_query_heads,
        key.shape[0],
        head_dim,
        half,
        HAS_POSITIONS=positions is not None,
        INVERSE=inverse,
        COPY_REST=rest > 0 and query_out is not query,
        **blocks,
        **launch_settings("rope_turn", blocks["QUERY_HEADS"] * blocks["HALF"]),
    )


def _neighbours(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _tables(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Both with neighbouring columns and one stride."""
    if cos.stride() == sin.stride() and cos.stride(-1) == 1:
        return cos, sin
    return cos.contiguous(), sin.contiguous()


@torch.library.custom_op("cpt_kernels::rope", mutates_args=())
def _forward(
    query: Tensor,
    key: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None,
    offset: int,
    inverse: bool,
    overwrite: bool,
) -> tuple[Tensor, Tensor]:
    query, key = _neighbours(query), _neighbours(key)
    turned = torch.empty_like(query), torch.empty_like(key)
    _launch(query, key, *turned, *_tables(cos, sin), positions, offset, inverse)
    return turned


@_forward.register_fake
def _(
    query: Tensor,
    key: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None,
    offset: int,
    inverse: bool,
    overwrite: bool,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(_neighbours(query)), torch.empty_like(_neighbours(key))


@torch.library.custom_op("cpt_kernels::rope_in_place", mutates_args=("query", "key"))
def _in_place(
    query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None, offset: int, inverse: bool
) -> None:
    _launch(query, key, query, key, *_tables(cos, sin), positions, offset, inverse)


def _save(ctx, inputs, output):
    _, _, cos, sin, positions, ctx.offset, ctx.inverse, ctx.overwrite = inputs
    ctx.save_for_backward(cos, sin, positions)


def _differentiate(ctx, grad_query, grad_key):
    cos, sin, positions = ctx.saved_tensors
    turn_back = (cos, sin, positions, ctx.offset, not ctx.inverse)
    in_place = ctx.overwrite and all(_is_dense(gradient) for gradient in (grad_query, grad_key))
    if in_place:
        _in_place(grad_query, grad_key, *turn_back)
    else:
        grad_query, grad_key = _forward(grad_query, grad_key, *turn_back, False)
    return grad_query, grad_key, None, None, None, None, None, None


def _is_dense(gradient: Tensor) -> bool:
    """Whether every element has an address of its own (an expanded gradient has not) and columns are neighbours."""
    return gradient.stride(-1) == 1 and all(
        stride > 0 for stride, size in zip(gradient.stride(), gradient.shape, strict=True) if size > 1
    )


_forward.register_autograd(_differentiate, setup_context=_save)


def _kernel(
    query: Tensor,
    key: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None,
    offset: int,
    overwrite_gradients: bool,
) -> tuple[Tensor, Tensor]:
    return _forward(query, key, cos, sin, positions, offset, False, overwrite_gradients)


register(OPERATION, triton_backend(OPERATION, _kernel))
register(OPERATION, native_backend(OPERATION, _kernel))
register(OPERATION, Backend("torch", lambda spec: None, reference))
