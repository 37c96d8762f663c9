"""From the configuration to an engine."""

from __future__ import annotations

import torch

from cpt_dist.config import CptConfig
from cpt_dist.engine.base import Engine
from cpt_dist.engine.distributed import World
from cpt_dist.model.packed import PackedCausalLM


def build_engine(model: PackedCausalLM, config: CptConfig, world: World, compute_dtype: torch.dtype) -> Engine:
    """Spread `model` over `world` with the configured engine.

    It is in fp32 and whole on each rank, or for FSDP2 on rank 0 alone and on the meta device elsewhere.
    """
    adamw_kernel = (config.kernels.adamw, config.kernels.strict)
    if config.engine.name == "zero":
        from cpt_dist.engine.zero import ZeroEngine

        return ZeroEngine(model, config.engine, config.optimizer, world, compute_dtype, adamw_kernel)
    from cpt_dist.engine.fsdp import FsdpEngine

    return FsdpEngine(model, config.engine, config.optimizer, world, compute_dtype, adamw_kernel)
