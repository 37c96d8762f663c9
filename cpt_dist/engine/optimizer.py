"""AdamW as every engine builds it: matrices decay, vectors do not.

The learning rate is not set here: the trainer gives it to each step, so what is logged is what was used.
"""

from __future__ import annotations

import torch
from torch import nn

from cpt_dist.config import OptimizerConfig


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups of trainable parameters: those with two or more axes decay, norms and biases do not.

    To be called before an engine shards the model, since a ZeRO-3 placeholder has no axes.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.dim() < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def adamw(groups: list[dict], config: OptimizerConfig) -> torch.optim.AdamW:
    """PyTorch's AdamW (Loshchilov and Hutter, arXiv 1711.05101) with learning rate 0 until a step sets it."""
    return torch.optim.AdamW(groups, lr=0.0, betas=(config.beta1, config.beta2), eps=config.epsilon, fused=True)
