"""The mesh over which the state of a model is sharded, for PyTorch's FSDP2.

It is the same for the model that trains and for a teacher beside it. Which ranks share rows is another axis
(`context/parallel.py`).
"""

from __future__ import annotations

from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from cpt_dist.engine.distributed import World
from cpt_dist.shard_size import check_shard_size


def state_mesh(world: World, shard_size: int) -> DeviceMesh:
    """One axis where all ranks share one copy of the state (`shard_size` 0 too); else copies x ranks of a copy (HSDP).

    Raises UserError where `shard_size` doesn't divide the number of ranks.
    """
    check_shard_size(shard_size, world.size)
    if shard_size in (0, world.size):
        return init_device_mesh(world.device.type, (world.size,), mesh_dim_names=("shard",))
    shape = (world.size // shard_size, shard_size)
    return init_device_mesh(world.device.type, shape, mesh_dim_names=("replicate", "shard"))
