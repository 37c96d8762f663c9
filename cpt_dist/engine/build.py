"""From the configuration to an engine."""

from __future__ import annotations

import torch

from cpt_dist.config import CptConfig, EngineConfig
from cpt_dist.engine.base import Engine
from cpt_dist.engine.distributed import World
from cpt_dist.model.packed import PackedCausalLM


def shards_weights(config: EngineConfig) -> bool:
    """Whether the configured engine shards weights, and so can take them all from rank 0."""
    return config.name == "fsdp" or config.zero_stage == 3


def build_engine(model: PackedCausalLM, config: CptConfig, world: World, compute_dtype: torch.dtype) -> Engine:
    """Spread `model` over `world` with the configured engine.

    It is in fp32 and whole on each rank, or if the engine `shards_weights` on rank 0 and on the meta device elsewhere.
    """
    adamw_kernel = (config.kernels.adamw, config.kernels.strict)
    if config.engine.name == "zero":
        from cpt_dist.engine.zero import ZeroEngine

        return ZeroEngine(model, config.engine, config.optimizer, world, compute_dtype, adamw_kernel)
    from cpt_dist.engine.fsdp import FsdpEngine

    return FsdpEngine(model, config.engine, config.optimizer, world, compute_dtype, adamw_kernel)
