"""The MLP of a decoder layer over chunks of tokens, so that [tokens, intermediate] never exists as a whole.

An MLP treats each token alone, so a row may pass through it in pieces; each piece is computed again in the backward
pass, and what stays is the MLP's input. The idea is the tiled MLP of Arctic's long sequences (arXiv 2506.13996, section
3.1); DeepSpeed's own adds gradients up behind autograd's back and so fits its engine only. The weights must be whole
for the whole call: FSDP2 gathers them with their layer, `engine/zero.py` makes the module a leaf of ZeRO-3.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cpt_dist.errors import UserError

NAMES = ("mlp", "feed_forward", "ffn")
"""What architectures call the MLP of a layer."""
TRIAL_PIECES = (4, 3)
"""Tokens of the pieces of the row that is tried."""
TOLERANCE = 1e-3


class ChunkedMlp(nn.Module):
    """An MLP whose forward goes through `chunk_tokens` tokens at a time; made by `chunk_mlps` out of another."""

    chunk_tokens: int = 0

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., tokens, hidden] -> the same shape. A row of one chunk keeps its activations, as without chunks."""
        whole = super().forward
        if hidden.shape[-2] <= self.chunk_tokens:
            return whole(hidden)
        chunks = hidden.split(self.chunk_tokens, dim=-2)
        if not torch.is_grad_enabled():
            return torch.cat([whole(chunk) for chunk in chunks], dim=-2)
        # Nothing in it is random (dropout is off), so no state of a random generator has to be kept.
        done = [checkpoint(whole, chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
        return torch.cat(done, dim=-2)


def chunk_mlps(layers: list[nn.Module], config: Any, chunk_tokens: int) -> None:
    """Turn the MLP of each layer of a model with this transformers config into a `ChunkedMlp`.

    In place: same parameters, same names. Raises UserError where a layer has no MLP by a known name, or its MLP gives
    a token another result in a chunk than in the row, which only a model with weights can show.
    """
    tried: set[type] = set()
    for layer in layers:
        mlp = next((child for name, child in layer.named_children() if name in NAMES), None)
        if mlp is None:
            raise UserError(
                f"model.mlp_chunk_tokens: the layers of a {config.model_type} model have no part called "
                f"{' or '.join(NAMES)}; set it to 0"
            )
        kind = type(mlp)
        if kind not in tried and not _treats_tokens_alone(mlp, config.hidden_size):
            raise UserError(
                f"model.mlp_chunk_tokens: the {kind.__name__} of a {config.model_type} model is no function of each "
                "token alone; set it to 0"
            )
        tried.add(kind)
        mlp.__class__ = type(f"Chunked{kind.__name__}", (ChunkedMlp, kind), {"chunk_tokens": chunk_tokens})


@torch.no_grad()
def _treats_tokens_alone(mlp: nn.Module, hidden_size: int) -> bool:
    """Whether random tokens have the same result in a row and in two pieces of it."""
    generator = torch.Generator().manual_seed(0)
    row = torch.randn(1, sum(TRIAL_PIECES), hidden_size, generator=generator).to(next(mlp.parameters()))
    try:
        whole, *pieces = (mlp(part) for part in (row, *row.split(TRIAL_PIECES, dim=1)))
    except TypeError:  # it wants more than the tokens
        return False
    if not all(isinstance(result, Tensor) for result in (whole, *pieces)):
        return False
    if whole.is_meta:  # the weights are on rank 0, which tries them
        return True
    return bool((whole - torch.cat(pieces, dim=1)).float().norm() <= TOLERANCE * whole.float().norm())
