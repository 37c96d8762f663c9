"""Operations whose memory or speed decides what a training run can do, each with a plain torch implementation.

This package knows nothing of cpt_dist: tensors go in, tensors come out. Which implementation ran is never a guess:
`cpt_kernels.registry` makes the choice, gives the reason for each refusal and lists what was chosen.
"""

from cpt_kernels.linear_cross_entropy import linear_cross_entropy
from cpt_kernels.registry import Backend, KernelRefusedError, Spec, choose, chosen, register

__all__ = ["Backend", "KernelRefusedError", "Spec", "choose", "chosen", "linear_cross_entropy", "register"]
