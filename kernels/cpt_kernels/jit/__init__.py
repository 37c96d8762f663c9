"""The Triton kernels, one module an operation; importing one of them imports Triton.

Rules that every kernel keeps, since no GPU checks them here: plain pointers, the row as int64 before it is multiplied,
loads widened to fp32 at once (but for the operands of a matrix product), rounding at the store only, `input_precision`
said in every product, no atomics, so that results don't depend on the order of programs.
"""

from cpt_kernels.triton_support import interpreting

if interpreting():
    from cpt_kernels.interpreter import repair

    repair()
