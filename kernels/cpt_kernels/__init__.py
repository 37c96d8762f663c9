"""Operations whose memory or speed decides what a training run can do, each in plain torch and as Triton kernels.

This package knows nothing of cpt_dist: tensors go in, tensors come out. Which implementation ran is never a guess:
`cpt_kernels.registry` makes the choice, gives the reason for each refusal and lists what was chosen. Importing it does
not import Triton. `python -m cpt_kernels` checks the kernels and shows what a machine can run.
"""

from cpt_kernels.adamw import adamw, clip_factor
from cpt_kernels.attention import document_attention
from cpt_kernels.cross_entropy import cross_entropy
from cpt_kernels.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_with_lse
from cpt_kernels.linear_kl import Softening, linear_kl
from cpt_kernels.registry import (
    Backend,
    KernelRefusedError,
    Spec,
    backends,
    choose,
    chosen,
    operations,
    register,
    spec_of,
)
from cpt_kernels.rms_norm import add_rms_norm, rms_norm
from cpt_kernels.rope import rope
from cpt_kernels.swiglu import swiglu

# Last, so that their backends come after the package's own.
from cpt_kernels import libraries  # noqa: F401 isort: skip

OPERATIONS = operations()
"""Names of this package's own operations; a program may register more."""

__all__ = [
    "OPERATIONS",
    "Backend",
    "KernelRefusedError",
    "Softening",
    "Spec",
    "adamw",
    "add_rms_norm",
    "backends",
    "choose",
    "chosen",
    "clip_factor",
    "cross_entropy",
    "document_attention",
    "linear_cross_entropy",
    "linear_cross_entropy_with_lse",
    "linear_kl",
    "operations",
    "register",
    "rms_norm",
    "rope",
    "spec_of",
    "swiglu",
]
