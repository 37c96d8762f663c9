"""Weights between a base and an adapted model: (1 - share) * base + share * adapted.

WiSE-FT (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", arXiv 2109.01903, section 3): on the way from
one to the other, models often keep most of the gain and lose little of what the base could. Whether they do here is
measured, not assumed.
"""

from __future__ import annotations

import torch

from cpt_dist.errors import UserError
from cpt_dist.model.packed import PackedCausalLM


@torch.no_grad()
def average_into(model: PackedCausalLM, other: PackedCausalLM, share: float) -> None:
    """Move the weights of `model` by `share` of the way to those of `other`, in place: 0 leaves them, 1 takes its own.

    Raises UserError where the two have other tensors or shapes, and for different RoPE: attention of one with the
    positions of the other is neither.
    """
    own, new = dict(model.named_parameters()), dict(other.named_parameters())
    different = sorted(
        name
        for name in own.keys() | new.keys()
        if getattr(own.get(name), "shape", 0) != getattr(new.get(name), "shape", 1)
    )
    if different:
        raise UserError(
            f"base and adapted model differ in the shape of {len(different)} tensors, such as '{different[0]}', so "
            "their weights have no average; leave verdict.averages empty"
        )
    if model.hf.config.rope_parameters != other.hf.config.rope_parameters:
        raise UserError(
            "base and adapted model have different RoPE, so an average of their weights is neither; leave "
            "verdict.averages empty"
        )
    for name, parameter in own.items():
        parameter.lerp_(new[name].to(parameter), share)
