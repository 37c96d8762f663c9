"""Changing the RoPE of a model that is built, wrapped and sharded.

Editing a model's config alone has no effect: its rotary embeddings hold frequencies made when it was built. They are
made again from the config and copied into the modules that are there, since an engine may have hooked those. A model
switched so computes bit for bit what a fresh load with that config computes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from cpt_dist.errors import UserError
from cpt_dist.model.packed import PackedCausalLM


def rope_of(model: PackedCausalLM) -> dict[str, Any]:
    """`rope_parameters` and `max_position_embeddings` of a model's config; empty where it has no RoPE."""
    parameters = getattr(model.config, "rope_parameters", None)
    if not parameters:
        return {}
    return {"rope_parameters": dict(parameters), "max_position_embeddings": model.config.max_position_embeddings}


def set_rope(model: PackedCausalLM, rope: dict[str, Any]) -> None:
    """Give `model` the RoPE of a `rope_of` or `StageRope.config_changes`, in fp32 whatever type its weights have.

    Raises UserError where the model has no rotary embedding that could be changed.
    """
    if not rope:
        return
    model.config.rope_parameters = dict(rope["rope_parameters"])
    model.config.max_position_embeddings = rope["max_position_embeddings"]
    modules = [m for m in model.hf.modules() if "inv_freq" in m._buffers and hasattr(m, "rope_type")]
    if not modules:
        raise UserError(
            f"a {model.config.model_type} model has no rotary embedding to change; take rope out of the stages"
        )
    for module in modules:
        _make_again(module, model.config)


def _make_again(module: nn.Module, config: Any) -> None:
    device = next(module.buffers()).device
    fresh = type(module)(config=config)
    for name, buffer in fresh.named_buffers(recurse=False):
        module.register_buffer(name, buffer.to(device), persistent=False)
    for name, value in vars(fresh).items():
        if not name.startswith("_") and not isinstance(value, (torch.Tensor, nn.Module)) and name != "training":
            setattr(module, name, value)
    module.__dict__.pop("long_inv_freq", None)
