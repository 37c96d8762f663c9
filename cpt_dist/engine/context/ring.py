"""Ring attention (arXiv 2310.01889): keys and values go round, each rank adds what its queries find in them.

A rank begins with its own tokens, so every query has met itself before the first merge and no row is ever empty. The
parts of a row are merged by their log-sum-exp in fp32. In the backward pass gradients of keys and values travel with
them and are home after a whole round.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cpt_dist.engine.context.blocks import Block, BlockKernel
from cpt_dist.engine.context.collectives import Exchange
from cpt_dist.engine.context.split import Range, SequenceSplit, rectangles

Piece = tuple[slice, slice, Block]
"""Queries among the rank's own tokens, keys among those of a rank, and which of these the queries see."""


def pieces(split: SequenceSplit, rank: int, other: int, window: int | None) -> Iterator[Piece]:
    """What the queries of `rank` meet in the keys of `other`; together over all ranks each pair that they may, once."""
    own, theirs = _places(split.parts[rank]), _places(split.parts[other])
    if rank == other:
        for span in split.parts[rank]:
            where = slice(own[span], own[span] + span[1] - span[0])
            yield where, where, Block(split.borders_within(span), True, span[1] - span[0], 0, window)
    for one in rectangles(split, rank, other, window):
        (start, stop), (first, last) = one.queries, one.keys
        # Nothing is hidden where the farthest pair is within the window.
        hides = window is not None and stop - 1 - first >= window
        block = Block([0, stop - start], False, last - first, start - first, window if hides else None)
        yield _slice(split.parts[rank], own, one.queries), _slice(split.parts[other], theirs, one.keys), block


def _places(part: list[Range]) -> dict[Range, int]:
    """Where each range of a part begins among the rank's tokens."""
    places, at = {}, 0
    for start, stop in part:
        places[start, stop] = at
        at += stop - start
    return places


def _slice(part: list[Range], places: dict[Range, int], span: Range) -> slice:
    within = next(one for one in part if one[0] <= span[0] and span[1] <= one[1])
    start = places[within] + span[0] - within[0]
    return slice(start, start + span[1] - span[0])


class RingAttention(torch.autograd.Function):
    """[tokens, heads, head_dim] of this rank's queries, keys and values -> its attended tokens."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rounds: Sequence[Sequence[Piece]],
        scale: float,
        kernel: BlockKernel,
        group: dist.ProcessGroup,
    ) -> Tensor:
        """`rounds` is what `pieces` gives for this rank and each other, from its own on backwards."""
        attended = torch.zeros_like(query, dtype=torch.float32)
        lse = attended.new_full((query.shape[1], len(query)), -torch.inf)
        travelling = torch.stack([key, value])
        for step, found_here in enumerate(rounds, start=1):
            ahead = Exchange(travelling, group) if step < len(rounds) else None
            for queries, keys, block in found_here:
                found = kernel.forward(query[queries], travelling[0][keys], travelling[1][keys], block, scale)
                _merge(attended, lse, queries, *found)
            travelling = ahead.wait() if ahead is not None else travelling
        result = attended.to(query.dtype)
        ctx.save_for_backward(query, key, value, result, lse)
        ctx.others = rounds, scale, kernel, group
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        query, key, value, result, lse = ctx.saved_tensors
        rounds, scale, kernel, group = ctx.others
        gradient = gradients[0].contiguous()
        of_queries = torch.zeros_like(query, dtype=torch.float32)
        travelling = torch.stack([key, value])
        of_travelling = torch.zeros_like(travelling, dtype=torch.float32)
        for step, found_here in enumerate(rounds, start=1):
            ahead = Exchange(travelling, group) if step < len(rounds) else None
            for queries, keys, block in found_here:
                saved = (query[queries], travelling[0][keys], travelling[1][keys])
                whole = (result[queries], lse[:, queries])
                dq, dk, dv = kernel.backward(gradient[queries], saved, whole, block, scale)
                of_queries[queries] += dq
                of_travelling[0][keys] += dk
                of_travelling[1][keys] += dv
            travelling = ahead.wait() if ahead is not None else travelling
            of_travelling = Exchange(of_travelling, group).wait()
        grads = (of_queries, of_travelling[0], of_travelling[1])
        return (*(one.to(query.dtype) for one in grads), None, None, None, None)


def _merge(attended: Tensor, lse: Tensor, queries: slice, found: Tensor, found_lse: Tensor) -> None:
    """Add what a block found to the rows of `queries`, in place; before the first one they are 0 and -inf."""
    before = lse[:, queries]
    both = torch.logaddexp(before, found_lse)
    keep, take = ((part - both).exp().T.unsqueeze(-1) for part in (before, found_lse))
    attended[queries] = attended[queries] * keep + found.float() * take
    lse[:, queries] = both
