"""SwiGLU's elementwise part, silu(gate) * up (arXiv 2002.05202): nothing but the two inputs is kept for backward."""

import triton
import triton.language as tl


@triton.jit
def swiglu_forward(gate_pointer, up_pointer, y_pointer, gate_stride, up_stride, num_columns, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < num_columns
    gate = tl.load(gate_pointer + row * gate_stride + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_pointer + row * up_stride + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_pointer + row * num_columns + column, gate * tl.sigmoid(gate) * up, mask=inside)


@triton.jit
def swiglu_backward(
    grad_y_pointer,
    gate_pointer,
    up_pointer,
    grad_gate_pointer,
    grad_up_pointer,
    grad_y_stride,
    gate_stride,
    up_stride,
    num_columns,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < num_columns
    grad_y = tl.load(grad_y_pointer + row * grad_y_stride + column, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(gate_pointer + row * gate_stride + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_pointer + row * up_stride + column, mask=inside, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    # silu'(g) = s + g s (1 - s), s = sigmoid(g)
    slope = sigmoid + gate * sigmoid * (1.0 - sigmoid)
    tl.store(grad_gate_pointer + row * num_columns + column, grad_y * up * slope, mask=inside)
    tl.store(grad_up_pointer + row * num_columns + column, grad_y * gate * sigmoid, mask=inside)
