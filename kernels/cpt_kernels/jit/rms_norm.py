"""RMSNorm (arXiv 1910.07467) with an optional residual that is added first; one program a row, then one a run of rows.

The gradient of the weight is a sum over rows: each backward program writes one fp32 row of its own, and the caller adds
those up, so that no two programs write one address and the order of addition is fixed.
"""

import triton
import triton.language as tl


@triton.jit
def rms_norm_forward(
    x_pointer,
    residual_pointer,
    weight_pointer,
    sum_pointer,
    y_pointer,
    rstd_pointer,
    x_stride,
    residual_stride,
    num_columns,
    epsilon,
    weight_offset,
    HAS_RESIDUAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < num_columns
    x = tl.load(x_pointer + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        x += tl.load(residual_pointer + row * residual_stride + column, mask=inside, other=0.0).to(tl.float32)
        rounded = x.to(sum_pointer.dtype.element_ty)
        tl.store(sum_pointer + row * num_columns + column, rounded, mask=inside)
        # The norm is that of what the next layer will read.
        x = rounded.to(tl.float32)
    rstd = tl.rsqrt(tl.sum(x * x, 0) / num_columns + epsilon)
    tl.store(rstd_pointer + row, rstd)
    weight = tl.load(weight_pointer + column, mask=inside, other=0.0).to(tl.float32) + weight_offset
    tl.store(y_pointer + row * num_columns + column, x * rstd * weight, mask=inside)


@triton.jit
def rms_norm_backward(
    grad_y_pointer,
    grad_sum_pointer,
    x_pointer,
    weight_pointer,
    rstd_pointer,
    grad_x_pointer,
    partial_pointer,
    grad_y_stride,
    grad_sum_stride,
    x_stride,
    num_rows,
    num_columns,
    rows_per_program,
    weight_offset,
    HAS_GRAD_SUM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < num_columns
    weight = tl.load(weight_pointer + column, mask=inside, other=0.0).to(tl.float32) + weight_offset
    grad_weight = tl.zeros([BLOCK], tl.float32)
    first = program * rows_per_program
    for row in range(first, tl.minimum(first + rows_per_program, num_rows)):
        x = tl.load(x_pointer + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
        grad_y = tl.load(grad_y_pointer + row * grad_y_stride + column, mask=inside, other=0.0).to(tl.float32)
        rstd = tl.load(rstd_pointer + row)
        normed = x * rstd
        scaled = grad_y * weight
        grad_x = (scaled - normed * (tl.sum(normed * scaled, 0) / num_columns)) * rstd
        if HAS_GRAD_SUM:
            grad_x += tl.load(grad_sum_pointer + row * grad_sum_stride + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(grad_x_pointer + row * num_columns + column, grad_x, mask=inside)
        grad_weight += grad_y * normed
    tl.store(partial_pointer + program * num_columns + column, grad_weight, mask=inside)
