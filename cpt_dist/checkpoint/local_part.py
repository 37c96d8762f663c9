"""What this rank holds of a tensor that is spread over ranks."""

from __future__ import annotations

import torch
from torch.distributed.tensor import DTensor

from cpt_dist.engine.flat_shard import FlatShard


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's own values of a tensor of `Engine.state_tensors`: a plain tensor without gradient, no copy."""
    if isinstance(tensor, FlatShard):
        return tensor.local
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor.detach()
