"""Causal attention of packed documents, plugged into transformers under the name `cpt_varlen`.

transformers 5 keeps packed documents apart only if every default is changed (position_ids alone leak), so the borders
travel as the keyword `documents` through the model to this function, and no mask is made at all. It patches nothing:
AttentionInterface and AttentionMaskInterface are the public hooks. Two backends: flash-attn's varlen kernel on a GPU
(written after its documentation, not measured on a GPU), and a loop over documents on any device, which on a CPU is 6
to 11 times faster than a dense mask.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from typing import Any, NamedTuple

import torch
from cpt_kernels import Backend, KernelRefusedError, Spec, choose, document_attention, register
from cpt_kernels.attention import MAX_HEAD_DIM as TRITON_MAX_HEAD_DIM
from cpt_kernels.attention import OPERATION as DOCUMENT_ATTENTION
from cpt_kernels.attention import native_attention_supports
from cpt_kernels.attention import supports as triton_supports
from cpt_kernels.native import native_backend
from cpt_kernels.triton_support import triton_backend
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from cpt_dist.errors import UserError

IMPLEMENTATION = "cpt_varlen"
OPERATION = "packed_attention"
QUERY_BLOCK_TOKENS = 512
"""Queries of a sliding-window document that attend at one time: the mask is this times (this + window) bytes."""
FLASH_MAX_HEAD_DIM = 256
RING = "ring"
"""Feature of a backend: it attends to some keys at a time and tells how much they weigh."""


class Heads(NamedTuple):
    """What a layer hands to its attention."""

    query: Tensor
    """[heads, tokens, head_dim]"""
    key: Tensor
    """[heads, tokens, head_dim], of as many heads or fewer (grouped queries)."""
    value: Tensor
    scaling: float | None = None
    """Factor of the scores; None: head_dim ** -0.5."""
    dropout: float = 0.0
    window: int | None = None
    """A token attends to itself and the window - 1 tokens before it; None: to all before it."""

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value."""
        return self.query, self.key, self.value


@dataclass
class Documents:
    """The borders of one flattened micro-batch, in the forms that the backends need."""

    cu_seqlens: Tensor
    """int32 [documents + 1] on the model's device, from 0 to the number of tokens."""
    runs: list[tuple[int, int, int]]
    """(first token, length, how many) of neighbouring documents of equal length, which attend as one batch."""
    longest: int
    """Tokens of the longest document."""
    backend: str = "auto"
    """What the user wants: a backend's name or auto."""
    keys_before: int = 0
    """Tokens of the first document that come before these: they are only keys and values, in front of the others."""
    windows_used: dict[int, int | None] = field(default_factory=dict)
    """The sliding window of each attention module that used these borders, by the module's id, in order. A layer that
    is missing would mix documents unseen."""

    @classmethod
    def of(cls, cu_seqlens: Tensor, num_tokens: int, backend: str = "auto", keys_before: int = 0) -> Documents:
        """From int [documents + 1]. Raises ValueError unless it rises from 0 to `num_tokens`."""
        borders = cu_seqlens.tolist()
        lengths = [stop - start for start, stop in pairwise(borders)]
        if not lengths or borders[0] != 0 or borders[-1] != num_tokens or min(lengths) < 0:
            raise ValueError(f"cu_seqlens must rise from 0 to {num_tokens}, the number of tokens; it is {borders}")
        runs, start = [], 0
        for length, group in groupby(length for length in lengths if length):
            count = len(list(group))
            runs.append((start, length, count))
            start += length * count
        return cls(cu_seqlens.to(torch.int32), runs, max(lengths), backend, keys_before)

    @property
    def features(self) -> frozenset[str]:
        """What a backend has to be able to do beside attention within documents."""
        return frozenset()

    def attend(self, backend: Backend, heads: Heads) -> Tensor:
        """[tokens, heads, head_dim], by a backend of `packed_attention`."""
        return backend.function(heads, self)


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    documents: Documents | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls in each layer.

    Args:
        query: [1, heads, tokens, head_dim]; key and value may have fewer heads (grouped queries).
        scaling: factor of the scores, by default head_dim ** -0.5.
        sliding_window: a token attends to itself and the sliding_window - 1 tokens before it, or None.
        documents: the borders; the keyword that `PackedCausalLM` passes to the model.

    Returns ([1, tokens, heads, head_dim], None). Raises UserError where the model wants something that packed
    attention does not do, such as soft-capped scores (Gemma 2), attention sinks or a mask.
    """
    name = type(module).__name__
    if documents is None:
        raise UserError(
            f"{name} was called without document borders; this architecture cannot train on packed documents"
        )
    unmet = [what for what in ("softcap", "s_aux", "position_bias") if others.get(what) is not None]
    if attention_mask is not None:
        unmet.append("attention_mask")
    if others.get("is_causal") is False or getattr(module, "is_causal", True) is False:
        unmet.append("attention to later tokens")
    if unmet:
        raise UserError(f"{name} needs {', '.join(unmet)}, which packed attention does not support; use another model")
    documents.windows_used[id(module)] = sliding_window
    device, head_dim = query.device.type, query.shape[-1]
    backend = choose_backend(documents.backend, device, query.dtype, head_dim, documents.features)
    attended = documents.attend(backend, Heads(query[0], key[0], value[0], scaling, dropout, sliding_window))
    return attended[None], None


def choose_backend(
    wanted: str, device: str, dtype: torch.dtype, head_dim: int = 64, features: frozenset[str] = frozenset()
) -> Backend:
    """The attention backend for tensors of this kind, and for `features`, such as RING.

    Raises UserError with the reason where it is refused.
    """
    limits = (FLASH_MAX_HEAD_DIM, TRITON_MAX_HEAD_DIM)
    features |= frozenset(f"head_dim>{limit}" for limit in limits if head_dim > limit)
    try:
        return choose(OPERATION, wanted, Spec(device, str(dtype).removeprefix("torch."), features))
    except KernelRefusedError as error:
        raise UserError(f"model.attention: '{wanted}': {error}; set it to auto or sdpa_per_document") from None


def _flash_supports(spec: Spec) -> str | None:
    if spec.device != "cuda":
        return f"flash-attn runs on a GPU only, not on {spec.device}"
    if spec.dtype not in ("bfloat16", "float16"):
        return f"flash-attn computes in bfloat16 or float16, not in {spec.dtype}"
    if "head_dim>256" in spec.features:
        return f"flash-attn takes heads of up to {FLASH_MAX_HEAD_DIM} dimensions"
    if importlib.util.find_spec("flash_attn") is None:
        return "the package flash-attn is not installed (pip install 'cpt_dist[gpu]')"
    if torch.version.hip is None and torch.cuda.get_device_capability() < (8, 0):
        return "flash-attn needs compute capability 8.0 (Ampere) or newer"
    return None


def _flash(heads: Heads, documents: Documents) -> Tensor:
    """flash_attn_varlen_func: -> [tokens, heads, head_dim]. Not measured on a GPU."""
    from flash_attn import flash_attn_varlen_func

    borders = key_borders = documents.cu_seqlens
    if documents.keys_before:
        # The causal mask is aligned to the last key of each document.
        key_borders = torch.cat([borders[:1], borders[1:] + documents.keys_before])
    return flash_attn_varlen_func(
        *(part.transpose(0, 1) for part in heads.parts),
        cu_seqlens_q=borders,
        cu_seqlens_k=key_borders,
        max_seqlen_q=documents.longest,
        max_seqlen_k=documents.longest + documents.keys_before,
        dropout_p=heads.dropout,
        softmax_scale=heads.scaling,
        causal=True,
        # flash-attn counts the tokens to the left, transformers the token itself as well.
        window_size=(-1, -1) if heads.window is None else (heads.window - 1, 0),
    )


def _sdpa_per_document(heads: Heads, documents: Documents) -> Tensor:
    """torch's SDPA for each run of equal documents: -> [tokens, heads, head_dim]."""
    query, key, value, scaling, dropout, window = heads
    pieces, before = [], documents.keys_before
    runs = documents.runs
    if before:
        (_, length, count), *rest = runs
        keys, values = (part[None, :, : before + length] for part in (key, value))
        attended = _banded(query[None, :, :length], keys, values, scaling, dropout, window, before)
        pieces.append(attended[0].transpose(0, 1))
        runs = [(length, length, count - 1), *rest] if count > 1 else rest
    for start, length, count in runs:
        q, k, v = (
            part[:, first : first + length * count].unflatten(1, (count, length)).transpose(0, 1)
            for part, first in ((query, start), (key, start + before), (value, start + before))
        )
        if window is None or length <= window:
            attended = scaled_dot_product_attention(
                q, k, v, is_causal=True, scale=scaling, dropout_p=dropout, enable_gqa=True
            )
        else:
            attended = _banded(q, k, v, scaling, dropout, window)
        pieces.append(attended.transpose(1, 2).flatten(0, 1))
    if len(pieces) == 1:
        return pieces[0]  # torch.cat would copy it
    return torch.cat(pieces) if pieces else query.transpose(0, 1)


def _banded(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    dropout: float,
    window: int | None,
    before: int = 0,
) -> Tensor:
    """Causal attention of [batch, heads, length, head_dim]: each block of queries meets only keys in reach.

    The first `before` keys come before the first query.
    """
    length, pieces = before + query.shape[2], []
    groups = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    for start in range(before, length, QUERY_BLOCK_TOKENS):
        stop, first = min(start + QUERY_BLOCK_TOKENS, length), max(0, start - window + 1) if window else 0
        distance = (
            torch.arange(start, stop, device=query.device)[:, None]
            - torch.arange(first, stop, device=query.device)[None]
        )
        pieces.append(
            scaled_dot_product_attention(
                query[:, :, start - before : stop - before],
                key[:, :, first:stop],
                value[:, :, first:stop],
                attn_mask=(distance >= 0) if window is None else (distance >= 0) & (distance < window),
                scale=scaling,
                dropout_p=dropout,
            )
        )
    return torch.cat(pieces, dim=2)


def _no_mask(*_: Any, **__: Any) -> None:
    """What transformers shall make as a mask for `cpt_varlen`: none, the borders say it all."""


def _by(kernel: str) -> Callable[..., Tensor]:
    """`document_attention` by one of its backends; that of Triton has not been measured on a GPU."""

    def attend(heads: Heads, documents: Documents) -> Tensor:
        """-> [tokens, heads, head_dim]"""
        if heads.dropout:
            raise UserError(f"model.attention: '{kernel}' has no dropout; set it to auto or sdpa_per_document")
        return document_attention(
            *heads.parts,
            documents.cu_seqlens,
            scale=heads.scaling,
            window=heads.window,
            keys_before=documents.keys_before,
            backend=kernel,
        )

    return attend


def _without_rings(supports: Callable[[Spec], str | None]) -> Callable[[Spec], str | None]:
    def asked(spec: Spec) -> str | None:
        if RING in spec.features:
            return "it computes no parts of a ring (engine.context_parallel_method)"
        return supports(spec)

    return asked


register(OPERATION, Backend("flash_attn", _flash_supports, _flash))


register(OPERATION, triton_backend(DOCUMENT_ATTENTION, _by("triton"), _without_rings(triton_supports)))
register(OPERATION, native_backend(DOCUMENT_ATTENTION, _by("native"), _without_rings(native_attention_supports)))
register(OPERATION, Backend("sdpa_per_document", lambda spec: None, _sdpa_per_document))
AttentionInterface.register(IMPLEMENTATION, packed_attention)
AttentionMaskInterface.register(IMPLEMENTATION, _no_mask)
