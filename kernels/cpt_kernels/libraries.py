"""Backends of other packages, taken only where they are installed and asked for by name.

cut-cross-entropy (arXiv 2411.09009) never writes logits to memory, which pays for very large vocabularies; its variant
that adds up gradients exactly is used, since the default drops small ones. Liger Kernel (arXiv 2410.10989) has RMSNorm
and SwiGLU. Written after their sources; neither has been measured on a GPU here, and neither runs on a CPU.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

from torch import Tensor

from cpt_kernels.cross_entropy import token_weights
from cpt_kernels.registry import Backend, Spec, register

CUT_CROSS_ENTROPY, LIGER = "cut_cross_entropy", "liger"
EXACT_GRADIENTS = "cce_kahan_full_c"


def _asked_for(spec: Spec) -> str | None:
    return "a library's kernel is taken only if it is asked for by name"


def _library_supports(
    package: str, project: str, dtypes: tuple[str, ...], missing: dict[str, str]
) -> Callable[[Spec], str | None]:
    """Refusals of a library: `missing` is feature -> what it has none of."""

    def supports(spec: Spec) -> str | None:
        if spec.device != "cuda":
            return f"{project} runs on a GPU only, not on {spec.device}"
        if spec.dtype not in dtypes:
            return f"{project} takes {', '.join(dtypes)}, not {spec.dtype}"
        for feature, what in missing.items():
            if feature in spec.features:
                return f"{project} has no {what}"
        if importlib.util.find_spec(package) is None:
            return f"the package {project} is not installed"
        return None

    return supports


def _cut_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    divisor: float | Tensor,
    bias: Tensor | None,
    softcap: float | None,
    logit_scale: float,
    label_weights: Tensor | None,
    z_loss: float,
    chunk_tokens: int,
    ignore_index: int,
) -> tuple[Tensor, Tensor, None]:
    from cut_cross_entropy import linear_cross_entropy

    nll = linear_cross_entropy(
        hidden,
        weight.to(hidden.dtype),
        labels,
        bias=bias,
        ignore_index=ignore_index,
        softcap=softcap,
        reduction="none",
        impl=EXACT_GRADIENTS,
    ).float()
    weights = token_weights(labels, label_weights, ignore_index, nll.dtype)
    return (nll * weights).sum() / divisor, nll.detach(), None


def _liger_rms_norm(x: Tensor, weight: Tensor, epsilon: float, weight_offset: float) -> Tensor:
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    # Gemma's way of rounding: everything in fp32 until the end. Not in place: the gradient may be read elsewhere.
    return LigerRMSNormFunction.apply(x, weight, epsilon, weight_offset, "gemma", False)


def _liger_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    return LigerSiLUMulFunction.apply(gate, up)


_HALF = ("bfloat16", "float16")
_ANY = ("float32", *_HALF)
_CUT_MISSING = {"lse": "log-sum-exp as a result", "z_loss": "z-loss", "logit_scale": "scale of the logits"}
register(
    "linear_cross_entropy",
    Backend(
        CUT_CROSS_ENTROPY,
        _library_supports("cut_cross_entropy", "cut-cross-entropy", _HALF, _CUT_MISSING),
        _cut_cross_entropy,
        _asked_for,
    ),
)
for _operation, _function in (("rms_norm", _liger_rms_norm), ("swiglu", _liger_swiglu)):
    register(
        _operation,
        Backend(LIGER, _library_supports("liger_kernel", "liger-kernel", _ANY, {}), _function, _asked_for),
    )
