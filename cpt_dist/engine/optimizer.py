"""AdamW as every engine builds it: matrices decay, vectors do not.

The learning rate is not set here: the trainer gives it to each step, so what is logged is what was used.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

from cpt_kernels import KernelRefusedError, Spec, choose
from torch import nn

from cpt_dist.config import OptimizerConfig
from cpt_dist.engine.piecewise_adamw import PiecewiseAdamW
from cpt_dist.errors import UserError

TORCH = "torch"


def parameter_groups(names: list[tuple[str, nn.Parameter]], config: OptimizerConfig) -> list[dict[str, Any]]:
    """Groups of the trainable parameters among (name, parameter), by weight decay and factor of the learning rate.

    Those with two or more axes decay, norms and biases do not. A group's `lr_multiplier` is that of the first pattern
    of `lr_multipliers` that matches the name. To be called before an engine shards the model, since a ZeRO-3
    placeholder has no axes. Raises UserError for a pattern that matches no parameter.
    """
    unused = dict(config.lr_multipliers)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in names:
        pattern = next((one for one in config.lr_multipliers if fnmatchcase(name, one)), None)
        factor = 1.0 if pattern is None else config.lr_multipliers[pattern]
        unused.pop(pattern or "", None)
        if parameter.requires_grad:
            groups.setdefault((config.weight_decay if parameter.dim() >= 2 else 0.0, factor), []).append(parameter)
    if unused:
        known = ", ".join(name for name, _ in names[:3])
        raise UserError(
            f"optimizer.lr_multipliers.{pattern}: it matches no parameter (there are {known}, …); correct the pattern"
            for pattern in unused
        )
    ordered = sorted(groups.items(), key=lambda item: (-item[0][0], item[0][1]))
    return [{"params": found, "weight_decay": decay, "lr_multiplier": lr} for (decay, lr), found in ordered]


def set_learning_rate(optimizer: Any, learning_rate: float) -> None:
    """Give every group of a (wrapped) optimizer its learning rate for the next step."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_multiplier"]


def adamw(
    groups: list[dict[str, Any]], config: OptimizerConfig, kernel: str = TORCH, strict: bool = True
) -> PiecewiseAdamW:
    """AdamW with learning rate 0 until a step sets it.

    `kernel` is torch (PyTorch's own step), a backend of `cpt_kernels.adamw`, or auto. Raises UserError where `strict`
    and it cannot run on the parameters' device.
    """
    optimizer = PiecewiseAdamW(groups, lr=0.0, betas=(config.beta1, config.beta2), eps=config.epsilon, fused=True)
    if kernel != TORCH:
        device = groups[0]["params"][0].device.type
        try:
            chosen = choose("adamw", kernel, Spec(device, "float32"), strict).name
        except KernelRefusedError as error:
            raise UserError(f"kernels.adamw: '{kernel}': {error}; set it to auto or {TORCH}") from None
        optimizer.kernel = None if chosen == TORCH else chosen
    return optimizer
