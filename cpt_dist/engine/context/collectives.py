"""The collectives of context parallelism as differentiable functions of one rank's tensors.

Each rank of the group must call them in the same order, forward and backward; so recomputed layers (activation
checkpointing) are fine. They know nothing of documents.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class GatherTokens(torch.autograd.Function):
    """[tokens of a rank, …] of each rank -> [tokens of all, …] in the order of the sequence, on every rank.

    Backward adds up the ranks' gradients of each token, in fp32, and gives each rank those of its own.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor, places: Tensor, group: dist.ProcessGroup) -> Tensor:
        """`places` is int64 [tokens of all]: the token of the sequence that each gathered one is."""
        ctx.save_for_backward(places)
        ctx.group = group
        gathered = own.new_empty(len(places), *own.shape[1:])
        dist.all_gather_single(gathered, own.contiguous(), group=group)
        return torch.empty_like(gathered).index_copy_(0, places, gathered)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        (gradient,) = gradients
        by_rank = gradient.index_select(0, places).float()
        own = by_rank.new_empty(len(places) // ctx.group.size(), *gradient.shape[1:])
        dist.reduce_scatter_single(own, by_rank, group=ctx.group)
        return own.to(gradient.dtype), None, None


class ExchangeHeads(torch.autograd.Function):
    """From all heads of a rank's tokens to all tokens of a rank's heads, or back (DeepSpeed-Ulysses, arXiv 2309.14509).

    Forth: [heads, tokens, head_dim] -> [heads / ranks, tokens * ranks, head_dim]; heads and tokens are dealt out in the
    order of the ranks. Backward is the other way.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup, forth: bool) -> Tensor:
        ctx.group, ctx.forth = group, forth
        size = group.size()
        # The first axis of `sent` is the rank that gets it, that of `received` the one it is from.
        if forth:
            sent = x.unflatten(0, (size, -1)).contiguous()
        else:
            sent = x.unflatten(1, (size, -1)).transpose(0, 1).contiguous()
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent, group=group)
        return received.transpose(0, 1).flatten(1, 2) if forth else received.flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None]:
        return ExchangeHeads.apply(gradients[0], ctx.group, not ctx.forth), None, None


class Exchange:
    """A tensor on its way to the next rank of the ring, while that of the rank before comes in."""

    def __init__(self, tensor: Tensor, group: dist.ProcessGroup) -> None:
        rank, size = group.rank(), group.size()
        self._sent = tensor.contiguous()  # held until it is gone
        self._received = torch.empty_like(self._sent)
        operations = [
            dist.P2POp(dist.isend, self._sent, group=group, group_peer=(rank + 1) % size),
            dist.P2POp(dist.irecv, self._received, group=group, group_peer=(rank - 1) % size),
        ]
        self._works = dist.batch_isend_irecv(operations)

    def wait(self) -> Tensor:
        """What the rank before has sent."""
        for work in self._works:
            work.wait()
        return self._received
