"""A model on all ranks of a job, from as little host memory as the engine allows.

FSDP2 and ZeRO-3 shard what rank 0 has loaded, so the other ranks need shapes alone. The lower stages of ZeRO keep the
whole model on each rank, and take it from each.
"""

from __future__ import annotations

import torch

from cpt_dist.config import ModelConfig
from cpt_dist.engine.distributed import World
from cpt_dist.engine.weights_from_first import layout
from cpt_dist.errors import UserError
from cpt_dist.kernels_config import KernelsConfig
from cpt_dist.model.load import load_model
from cpt_dist.model.packed import PackedCausalLM


def load_for(
    world: World, settings: ModelConfig, kernels: KernelsConfig, compute: tuple[str, torch.dtype], sharded: bool
) -> PackedCausalLM:
    """`load_model` in fp32; on ranks but the first on the meta device where its weights are to be `sharded`.

    Raises UserError on every rank where one cannot load it. Every rank must call it.
    """

    def load(weights: bool) -> PackedCausalLM:
        return load_model(settings, torch.float32, kernels, compute, weights)

    if not sharded or world.size == 1:
        return load(True)
    model, problems = None, []
    try:
        model = load(world.is_first)
    except UserError as error:
        problems = error.problems
    found = world.gather((problems, None if model is None else layout(model)))
    if failed := next((problems for problems, _ in found if problems), None):
        raise UserError(failed)
    assert model is not None
    same = all(one == found[0][1] for _, one in found)
    # A checkpoint may hold another head than the embeddings that its config ties it to: only the weights show it.
    return model if same or world.is_first else load(True)
