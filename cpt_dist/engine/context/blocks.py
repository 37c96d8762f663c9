"""Attention of a block with its log-sum-exp, and its backward from the whole row's: what a ring adds up.

Tensors are [tokens, heads, head_dim]; keys and values may have fewer heads. The log-sum-exp [heads, tokens] is that of
the scaled scores, in fp32. Two kernels: flash-attn's varlen functions on a GPU (written after their documentation, not
measured on a GPU), and plain products in fp32 on any device. Formulas: FlashAttention-2 (arXiv 2307.08691), section 3.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

_SCORES_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class Block:
    """Which of its keys a block's queries see."""

    borders: list[int]
    """Of documents, queries and keys alike, each token seeing itself and those before it; [0, queries] and not causal:
    every key comes before every query."""
    causal: bool
    num_keys: int
    distance: int = 0
    """From the first key to the first query in the sequence."""
    window: int | None = None
    """A query sees itself and the window - 1 tokens before it; None: all."""


class BlockKernel(ABC):
    """Forward and backward of a block."""

    @abstractmethod
    def forward(self, query: Tensor, key: Tensor, value: Tensor, block: Block, scale: float) -> tuple[Tensor, Tensor]:
        """(attended [tokens, heads, head_dim], log-sum-exp [heads, tokens])."""

    @abstractmethod
    def backward(
        self,
        gradient: Tensor,
        saved: tuple[Tensor, Tensor, Tensor],
        whole: tuple[Tensor, Tensor],
        block: Block,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of query, key and value (`saved`), given those of the result.

        `whole` is the result and the log-sum-exp of these queries over all their keys, also those outside the block.
        """


class ProductKernel(BlockKernel):
    """Plain products in fp32, some queries at a time."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, block: Block, scale: float) -> tuple[Tensor, Tensor]:
        attended, lse = torch.empty_like(query), query.new_empty(query.shape[1], len(query), dtype=torch.float32)
        for queries, keys in self._pieces(block, query.shape[1]):
            scores = self._scores(query, key, block, queries, keys, scale)  # [key heads, group * queries, keys]
            sums = scores.logsumexp(-1, keepdim=True)
            weighed = (scores - sums).exp() @ value[keys].float().transpose(0, 1)
            attended[queries] = self._tokens_first(weighed, query.shape[1]).to(query.dtype)
            lse[:, queries] = sums.view(query.shape[1], -1)
        return attended, lse

    def backward(
        self,
        gradient: Tensor,
        saved: tuple[Tensor, Tensor, Tensor],
        whole: tuple[Tensor, Tensor],
        block: Block,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        (query, key, value), (attended, lse), heads = saved, whole, saved[0].shape[1]
        grads = [torch.zeros_like(part, dtype=torch.float32) for part in saved]
        delta = (gradient.float() * attended.float()).sum(-1).T  # [heads, queries]
        for queries, keys in self._pieces(block, heads):
            groups = (key.shape[1], -1, 1)
            weights = (self._scores(query, key, block, queries, keys, scale) - lse[:, queries].reshape(groups)).exp()
            above = self._by_key_head(gradient[queries], key.shape[1])
            products = above @ value[keys].float().permute(1, 2, 0)
            slope = weights * (products - delta[:, queries].reshape(groups)) * scale
            grads[0][queries] += self._tokens_first(slope @ key[keys].float().transpose(0, 1), heads)
            grads[1][keys] += (slope.mT @ self._by_key_head(query[queries], key.shape[1])).transpose(0, 1)
            grads[2][keys] += (weights.mT @ above).transpose(0, 1)
        return grads[0], grads[1], grads[2]

    @staticmethod
    def _pieces(block: Block, heads: int) -> list[tuple[slice, slice]]:
        """Queries that are computed at one time, and the keys that some of them see."""
        pieces = []
        for start, stop in pairwise(block.borders):
            longest = stop - start if block.causal else block.num_keys
            step = max(16, _SCORES_AT_ONCE // (heads * max(1, longest)))
            for first in range(start, stop, step):
                last = min(first + step, stop)
                seen = (start, last) if block.causal else (0, block.num_keys)
                pieces.append((slice(first, last), slice(*seen)))
        return pieces

    def _scores(self, query: Tensor, key: Tensor, block: Block, queries: slice, keys: slice, scale: float) -> Tensor:
        by_head = self._by_key_head(query[queries], key.shape[1])
        scores = (by_head @ key[keys].float().permute(1, 2, 0)) * scale
        if not block.causal and block.window is None:
            return scores
        places = torch.arange(queries.start, queries.stop, device=query.device)[:, None] + block.distance
        back = places - torch.arange(keys.start, keys.stop, device=query.device)[None]
        hidden = (back < 0) if block.window is None else (back < 0) | (back >= block.window)
        return scores.masked_fill_(hidden.repeat(query.shape[1] // key.shape[1], 1), -torch.inf)

    @staticmethod
    def _by_key_head(x: Tensor, key_heads: int) -> Tensor:
        """[queries, heads, head_dim] -> fp32 [key heads, group * queries, head_dim]."""
        return x.float().transpose(0, 1).unflatten(0, (key_heads, -1)).flatten(1, 2)

    @staticmethod
    def _tokens_first(x: Tensor, heads: int) -> Tensor:
        return x.reshape(heads, -1, x.shape[-1]).transpose(0, 1)


class FlashKernel(BlockKernel):
    """flash-attn 2's varlen functions, which give and take the log-sum-exp. Not measured on a GPU."""

    @staticmethod
    def _arguments(query: Tensor, block: Block, scale: float) -> dict[str, object]:
        borders = torch.tensor(block.borders, dtype=torch.int32, device=query.device)
        key_borders, longest_key = borders, block.num_keys
        longest = max(stop - start for start, stop in pairwise(block.borders))
        if block.causal:
            longest_key = longest
        else:
            key_borders = torch.tensor([0, block.num_keys], dtype=torch.int32, device=query.device)
        left = -1
        if block.window is not None:
            # flash-attn counts from the diagonal that ends in the last key of the last query.
            left = block.window - 1 + (0 if block.causal else block.num_keys - len(query) - block.distance)
        return {
            "cu_seqlens_q": borders,
            "cu_seqlens_k": key_borders,
            "max_seqlen_q": longest,
            "max_seqlen_k": longest_key,
            "dropout_p": 0.0,
            "softmax_scale": scale,
            "causal": block.causal,
            "window_size_left": left,
            "window_size_right": 0 if block.causal else -1,
            "softcap": 0.0,
            "alibi_slopes": None,
        }

    def forward(self, query: Tensor, key: Tensor, value: Tensor, block: Block, scale: float) -> tuple[Tensor, Tensor]:
        from flash_attn.flash_attn_interface import _flash_attn_varlen_forward

        attended, lse, *_ = _flash_attn_varlen_forward(
            query, key, value, return_softmax=False, **self._arguments(query, block, scale)
        )
        return attended, lse

    def backward(
        self,
        gradient: Tensor,
        saved: tuple[Tensor, Tensor, Tensor],
        whole: tuple[Tensor, Tensor],
        block: Block,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        from flash_attn.flash_attn_interface import _flash_attn_varlen_backward

        dq, dk, dv = (torch.empty_like(part, memory_format=torch.contiguous_format) for part in saved)
        _flash_attn_varlen_backward(
            gradient,
            *saved,
            whole[0],
            whole[1].contiguous(),
            dq=dq,
            dk=dk,
            dv=dv,
            deterministic=False,
            **self._arguments(saved[0], block, scale),
        )
        return dq, dk, dv


KERNELS: dict[str, BlockKernel] = {"flash_attn": FlashKernel(), "sdpa_per_document": ProductKernel()}
"""By the name of the attention backend that `model.attention` chose."""
