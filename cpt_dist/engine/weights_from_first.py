"""The weights of a model that rank 0 alone has loaded, given to the shards of every rank.

Else each rank would hold the whole model in fp32 in host memory before it is sharded: 2.2 TB on a host of 8 ranks for
70 billion parameters. The other ranks build the model on the meta device, which has shapes and no memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from cpt_dist.engine.distributed import World


def lacks_weights(model: nn.Module) -> bool:
    """Whether parameters of `model` are on the meta device."""
    return any(parameter.is_meta for parameter in model.parameters())


def layout(model: nn.Module) -> dict[str, Any]:
    """What has to be the same on two ranks if one is to take the other's weights; equal layouts can.

    A shared parameter counts once, so a tied head shows. Tensors that are neither parameters nor buffers can't be given
    to a rank that has none.
    """
    tensors = [*model.named_parameters(), *model.named_buffers()]
    loose = [
        f"{name}.{key}"
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, Tensor) and value.is_meta
    ]
    return {"tensors": [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors], "loose": loose}


@contextmanager
def given_by_first(model: nn.Module, world: World, offload: bool) -> Iterator[None]:
    """Inside `model` is to be sharded by FSDP2; then ranks that have it on the meta device get shards of rank 0's.

    Parameters get memory on the CPU if they are to be offloaded, else on the rank's device. Every rank must enter it.
    """
    given = any(world.gather(lacks_weights(model)))
    whole = {}
    if given and world.is_first:
        whole = {name: tensor.detach() for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    yield
    if given:
        _fill(model, whole, world, offload)


@torch.no_grad()
def _fill(model: nn.Module, weights: dict[str, Tensor], world: World, offload: bool) -> None:
    # A rank holds one whole tensor at a time beside its shards; rank 0 drops its own as they are given away.
    if lacks_weights(model):
        model.to_empty(device="cpu" if offload else world.device)
    for name, parameter in model.named_parameters():
        sharded = cast(DTensor, parameter)
        whole = _from_first(weights, name, sharded, world)
        own = distribute_tensor(whole, sharded.device_mesh, sharded.placements, src_data_rank=None)
        sharded.to_local().copy_(own.to_local())
    for name, buffer in list(model.named_buffers()):
        owner, _, own_name = name.rpartition(".")
        setattr(model.get_submodule(owner), own_name, _from_first(weights, name, buffer, world))


def _from_first(weights: dict[str, Tensor], name: str, like: Tensor, world: World) -> Tensor:
    whole = weights.pop(name).to(world.device) if world.is_first else None
    if whole is None:
        whole = torch.empty(like.shape, dtype=like.dtype, device=world.device)
    dist.broadcast(whole, 0)
    return whole
