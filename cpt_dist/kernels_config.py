"""The schema of the choice of kernels, and the checks that need nothing but its values.

It is a part of `cpt_dist.config` in a file of its own. Which backends an operation has is in `cpt_kernels`, and whether
one can run is asked there when a model is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass

MODEL = "model"
LAYER_BACKENDS = (MODEL, "auto", "torch", "triton", "native")
LOSS_BACKENDS = ("auto", "torch", "triton", "native", "cut_cross_entropy")
DISTILLATION_BACKENDS = ("auto", "torch", "triton", "native")
STEP_BACKENDS = ("torch", "triton", "auto")
ATTENTIONS = ("auto", "sdpa_per_document", "flash_attn", "native", "triton")
LAYER_OPERATIONS = ("rms_norm", "add_rms_norm", "rope", "swiglu")


@dataclass
class KernelsConfig:
    """Who computes the operations of training (docs/kernels.md)."""

    linear_cross_entropy: str = "auto"
    """The output layer's loss: torch, triton, native (C, compiled on the machine, for CPUs in fp32), or auto (triton on
    a GPU and native on a CPU where they pass their trial there, else torch). If the package is installed:
    cut_cross_entropy."""
    linear_kl: str = "auto"
    """The loss of distillation, from the output layers of both models: torch, triton, native, or auto as above."""
    rms_norm: str = MODEL
    """RMSNorm: model (the code of transformers), torch (one rounding, fp32 inside), triton, native, or auto as above.
    If the package is installed: liger."""
    add_rms_norm: str = MODEL
    """The sum of the residual and the attention's output with the norm that follows: as rms_norm."""
    rope: str = MODEL
    """The rotation of queries and keys, with fp32 tables unless it is model: as rms_norm."""
    swiglu: str = MODEL
    """The elementwise part of the gated MLP, computed again in the backward pass unless it is model: as rms_norm."""
    attention: str | None = None
    """As model.attention, which it takes the place of: auto, sdpa_per_document, flash_attn, native or triton; null:
    what model.attention says."""
    adamw: str = "torch"
    """The optimizer's step: torch (PyTorch's fused one), triton (on fsdp the clipping of gradients is part of it), or
    auto as above."""
    strict: bool = True
    """A backend that is asked for by name and cannot run stops the run with the reason; false: auto decides instead,
    with a warning."""


def kernel_problems(kernels: KernelsConfig, attention: str) -> list[str]:
    """What is wrong with the values, one line each; `attention` is `model.attention`."""
    problems = []
    allowed: dict[str, tuple[str, ...]] = {
        **dict.fromkeys(LAYER_OPERATIONS, LAYER_BACKENDS),
        **dict.fromkeys(("rms_norm", "swiglu"), (*LAYER_BACKENDS, "liger")),
        "linear_cross_entropy": LOSS_BACKENDS,
        "linear_kl": DISTILLATION_BACKENDS,
        "adamw": STEP_BACKENDS,
    }
    for name, names in allowed.items():
        if (value := getattr(kernels, name)) not in names:
            problems.append(f"kernels.{name}: '{value}' is unknown; it is {', '.join(names[:-1])} or {names[-1]}")
    if kernels.attention is None:
        return problems
    if kernels.attention not in ATTENTIONS:
        problems.append(
            f"kernels.attention: '{kernels.attention}' is unknown; it is {', '.join(ATTENTIONS[:-1])} or triton"
        )
    elif attention not in ("auto", kernels.attention):
        problems.append(
            f"kernels.attention: '{kernels.attention}' contradicts model.attention '{attention}'; give one of them"
        )
    return problems
