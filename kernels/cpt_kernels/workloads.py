"""Requests of the size that training makes, for measurements on a GPU."""

from __future__ import annotations

from cpt_kernels.verify.case import Case
from cpt_kernels.verify.cases_attention import attention_case
from cpt_kernels.verify.cases_layers import gate_case, norm_case, rope_case
from cpt_kernels.verify.cases_losses import adamw_case, entropy_case, kl_case

TOKENS = 4096
WORDS = 131072


def workload(kernel: str, up_to: int) -> Case:
    """A case that launches `kernel` with the row of the launch table that ends at `up_to`.

    Raises KeyError for a kernel that has none.
    """
    if kernel.startswith("rms_norm"):
        return norm_case(TOKENS, up_to, residual=True)
    if kernel.startswith("attention"):
        return attention_case((32, 8), (TOKENS // 4, TOKENS - TOKENS // 4), up_to)
    return {
        "swiglu_forward": gate_case(TOKENS, 14336),
        "swiglu_backward": gate_case(TOKENS, 14336),
        "rope_turn": rope_case((16, 4), TOKENS, 64, 32) if up_to <= 2048 else rope_case((32, 8), TOKENS, 128, 64),
        "cross_entropy_forward": entropy_case(TOKENS // 4, WORDS),
        "cross_entropy_backward": entropy_case(TOKENS // 4, WORDS),
        "kl_rows": kl_case(TOKENS // 16, WORDS),
        "adamw_step": adamw_case((TOKENS, TOKENS)),
    }[kernel]
