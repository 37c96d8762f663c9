"""The weights of a model that rank 0 alone has loaded, given to the shards of every rank.

Else each rank would hold the whole model in fp32 in host memory before it is sharded: 2.2 TB on a host of 8 ranks for
70 billion parameters. The other ranks build the model on the meta device, which has shapes and no memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
def sharded_from_first(model: nn.Module, world: World, offload: bool) -> Iterator[None]:
    """Inside `model` is to be sharded by FSDP2; then ranks that have it on the meta device get shards of rank 0's.

    Parameters get memory on the CPU if they are to be offloaded, else on the rank's device. Every rank must enter it.
    """
    given = any(world.gather(lacks_weights(model)))
    whole = _tensors_of_first(model.named_parameters(), world) if given else {}
    buffers = _tensors_of_first(model.named_buffers(), world) if given else {}
    yield
    if not given:
        return
    if lacks_weights(model):
        model.to_empty(device="cpu" if offload else world.device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            sharded = cast(DTensor, parameter)
            # One whole tensor at a time beside the shards; rank 0 drops its own as they are given away.
            tensor = _from_first(whole, name, sharded, world)
            own = distribute_tensor(tensor, sharded.device_mesh, sharded.placements, src_data_rank=None)
            sharded.to_local().copy_(own.to_local())
    _give_buffers(model, buffers, world)


@torch.no_grad()
def partition_from_first(
    deepspeed: Any, model: nn.Module, settings: dict[str, Any], dtype: torch.dtype, world: World
) -> None:
    """Partition `model` by ZeRO-3 in `dtype`, so that ranks that have it on the meta device get theirs of rank 0's.

    `settings` are those of deepspeed.initialize, which takes a partitioned model as it is. Every rank must call it.
    """
    buffers = _tensors_of_first(model.named_buffers(), world)
    for parameter in model.parameters():
        if parameter.is_meta:
            # Pages that nobody writes take no memory: zero.Init fills one parameter from rank 0, and drops it again.
            # The optimizer and tied modules hold these objects, so what is swapped is their content.
            empty = torch.empty(parameter.shape, dtype=dtype)
            torch.utils.swap_tensors(parameter, nn.Parameter(empty, parameter.requires_grad))
        else:
            parameter.data = parameter.data.to(dtype)
    deepspeed.zero.Init(module=model, config_dict_or_path=settings, dtype=dtype)
    _give_buffers(model, buffers, world)


def _tensors_of_first(named: Iterable[tuple[str, Tensor]], world: World) -> dict[str, Tensor]:
    """On rank 0 the tensors, without copies; nothing on the others."""
    return {name: tensor.detach() for name, tensor in named} if world.is_first else {}


def _give_buffers(model: nn.Module, buffers: dict[str, Tensor], world: World) -> None:
    for name, buffer in list(model.named_buffers()):
        owner, _, own_name = name.rpartition(".")
        setattr(model.get_submodule(owner), own_name, _from_first(buffers, name, buffer, world))


def _from_first(tensors: dict[str, Tensor], name: str, like: Tensor, world: World) -> Tensor:
    if world.is_first:
        whole = tensors.pop(name).to(world.device)
    else:
        whole = torch.empty(like.shape, dtype=like.dtype, device=world.device)
    dist.broadcast(whole, 0)
    return whole
