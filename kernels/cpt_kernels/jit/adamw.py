"""One AdamW step (arXiv 1711.05101) of a tensor, with the factor of gradient clipping in the same pass."""

import triton
import triton.language as tl


@triton.jit
def adamw_step(
    parameter_pointer,
    gradient_pointer,
    mean_pointer,
    square_pointer,
    factor_pointer,
    num_elements,
    learning_rate_over_correction,
    decay,
    complement1,
    complement2,
    root_correction2,
    epsilon,
    BLOCK: tl.constexpr,
):
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = element < num_elements
    factor = tl.load(factor_pointer)
    gradient = tl.load(gradient_pointer + element, mask=inside, other=0.0).to(tl.float32) * factor
    parameter = tl.load(parameter_pointer + element, mask=inside, other=0.0).to(tl.float32)
    mean = tl.load(mean_pointer + element, mask=inside, other=0.0).to(tl.float32)
    square = tl.load(square_pointer + element, mask=inside, other=0.0).to(tl.float32)
    # As moves towards the new value: beta rounded to fp32 would lose digits of 1 - beta.
    mean += (gradient - mean) * complement1
    square += (gradient * gradient - square) * complement2
    parameter -= parameter * decay
    parameter -= learning_rate_over_correction * mean / (tl.sqrt(square) / root_correction2 + epsilon)
    tl.store(parameter_pointer + element, parameter, mask=inside)
    tl.store(mean_pointer + element, mean, mask=inside)
    tl.store(square_pointer + element, square, mask=inside)
