"""The AdamW step (Loshchilov and Hutter, arXiv 1711.05101) of many tensors, gradients clipped in the same pass.

`torch.nn.utils.clip_grad_norm_` reads and writes every gradient before the optimizer reads it again. Here the factor of
the clipping is a number on the device that the step multiplies each gradient by as it is loaded; the gradients stay as
they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cpt_kernels.registry import Backend, Spec, choose, register, spec_of
from cpt_kernels.triton_support import launch_settings, triton_backend

OPERATION = "adamw"


def clip_factor(norm: Tensor, max_norm: float) -> Tensor:
    """fp32 [1] on the device of `norm`: what gradients of this norm are multiplied by; 1 where `max_norm` is 0."""
    if max_norm <= 0:
        return torch.ones(1, dtype=torch.float32, device=norm.device)
    # As torch.nn.utils.clip_grads_with_norm_ does it.
    return (max_norm / (norm.detach() + 1e-6)).clamp(max=1.0).float().reshape(1)


def adamw(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    means: Sequence[Tensor],
    squares: Sequence[Tensor],
    *,
    step: int,
    learning_rate: float,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
    factor: Tensor | None = None,
    backend: str = "auto",
    strict: bool = True,
) -> None:
    """Take step number `step` (the first is 1) of every parameter, in place, with its moments.

    Args:
        parameters: tensors of one device and dtype, each contiguous; `means` and `squares` of the same shapes.
        gradients: of the same shapes, in any floating point type.
        factor: fp32 [1], what every gradient is multiplied by, as `clip_factor` gives it; None for 1.
        strict: whether a backend that cannot run is an error; else auto decides, with a warning.

    Raises ValueError for lists or shapes that do not fit, a step below 1, or a refused backend.
    """
    if step < 1:
        raise ValueError(f"step {step} must be at least 1: it is the number of the step that is taken")
    for parameter, *others in zip(parameters, gradients, means, squares, strict=True):
        if any(other.shape != parameter.shape for other in others):
            raise ValueError(f"gradient and moments of a parameter {tuple(parameter.shape)} must have its shape")
    if not parameters:
        return
    function = choose(OPERATION, backend, spec_of(parameters[0]), strict).function
    if factor is None:
        factor = torch.ones(1, dtype=torch.float32, device=parameters[0].device)
    options = (step, learning_rate, betas[0], betas[1], epsilon, weight_decay)
    with torch.no_grad():
        for tensors in zip(parameters, gradients, means, squares, strict=True):
            function(*tensors, factor, *options)


def reference(
    parameter: Tensor,
    gradient: Tensor,
    mean: Tensor,
    square: Tensor,
    factor: Tensor,
    step: int,
    learning_rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
) -> None:
    """The step by torch's own operations, in place."""
    gradient = gradient.to(mean.dtype) * factor.to(mean.dtype)
    mean.lerp_(gradient, 1 - beta1)
    square.lerp_(gradient.square(), 1 - beta2)
    correction1, correction2 = 1 - beta1**step, 1 - beta2**step
    denominator = square.sqrt().div_(math.sqrt(correction2)).add_(epsilon)
    parameter.mul_(1 - learning_rate * weight_decay)
    parameter.addcdiv_(mean.to(parameter.dtype), denominator.to(parameter.dtype), value=-learning_rate / correction1)


@torch.library.custom_op("cpt_kernels::adamw", mutates_args=("parameter", "mean", "square"))
def _step(
    parameter: Tensor,
    gradient: Tensor,
    mean: Tensor,
    square: Tensor,
    factor: Tensor,
    step: int,
    learning_rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
) -> None:
    from cpt_kernels.jit.adamw import adamw_step

    if not all(tensor.is_contiguous() for tensor in (parameter, mean, square)):
        raise ValueError("the Triton step of AdamW takes contiguous parameters and moments")
    settings = launch_settings("adamw_step", parameter.numel())
    if parameter.numel():
        adamw_step[(-(-parameter.numel() // settings["BLOCK"]),)](
            parameter,
            gradient.contiguous(),
            mean,
            square,
            factor,
            parameter.numel(),
            learning_rate / (1 - beta1**step),
            learning_rate * weight_decay,
            1 - beta1,
            1 - beta2,
            math.sqrt(1 - beta2**step),
            epsilon,
            **settings,
        )


def _supports(spec: Spec) -> str | None:
    # Rounding to nearest would lose most updates of a 16-bit weight.
    return None if spec.dtype == "float32" else "the step is for fp32 master weights"


register(OPERATION, triton_backend(OPERATION, _step, _supports))
register(OPERATION, Backend("torch", lambda spec: None, reference))
