"""Cross entropy of a linear layer's output without the output: logits exist for one chunk of tokens at a time.

The gradients are computed in the forward pass, chunk by chunk, and only scaled in the backward pass (the way of Liger
Kernel's fused linear cross entropy, arXiv 2410.10989, section 3.2). It is not torch's `F.linear_cross_entropy`, which
in 2.13 adds up a bf16 loss over chunks in bf16 (off by 1 nat of 12). The caller gives the divisor of the loss, so that
accumulation over micro-batches and ranks can be exact. The backends share the products of matrices, which are the
device's own, and differ in who computes the rows of a chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.compiler import is_compiling

from cpt_kernels.cross_entropy import Rows, check_options, loss_of, native_rows, token_weights, torch_rows, triton_rows
from cpt_kernels.cross_entropy import reference as logits_reference
from cpt_kernels.native import native_backend
from cpt_kernels.registry import Backend, Spec, choose, register, spec_of
from cpt_kernels.triton_support import triton_backend

OPERATION = "linear_cross_entropy"


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    divisor: float | Tensor,
    bias: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    label_weights: Tensor | None = None,
    z_loss: float = 0.0,
    chunk_tokens: int = 512,
    ignore_index: int = -100,
    backend: str = "auto",
    strict: bool = True,
) -> tuple[Tensor, Tensor]:
    """Sum over tokens of weight * (nll + z_loss * lse^2) over `divisor`, and the nll of each token.

    logits = logit_scale * (hidden @ weight.T + bias), then softcap * tanh(logits / softcap) where softcap is set
    (Gemma 2, arXiv 2408.00118, section 2); lse[t] = logsumexp(logits[t]), nll[t] = lse[t] - logits[t, labels[t]]. The
    z-loss is that of PaLM (arXiv 2204.02311, section 5).

    Args:
        hidden: [tokens, hidden], floating point.
        weight: [vocab, hidden]; it is used in the dtype of `hidden`.
        labels: [tokens] int64, each in [0, vocab) or `ignore_index`.
        divisor: positive number or 0-d tensor on the device of `hidden`; it gets no gradient.
        bias: [vocab] or None.
        label_weights: [tokens], factor of each token's part of the loss, or None for 1; it gets no gradient.
        chunk_tokens: tokens whose logits exist at one time: chunk_tokens * vocab * 4 bytes, twice that with softcap
            (torch backend) or 16-bit input.
        backend: name of a registered backend, or auto.
        strict: whether a backend that cannot run is an error; else auto decides, with a warning.

    Returns (loss, nll): loss is 0-d, nll is [tokens], 0 where ignored and without gradient. Both are fp32 (fp64 for
    fp64 input), whatever the dtype of the input. Nothing is computed for gradients that nobody asked for.

    Raises ValueError for shapes that do not fit, a divisor that is not positive, or a refused backend.
    """
    options = (divisor, bias, softcap, logit_scale, label_weights, z_loss, chunk_tokens, ignore_index)
    loss, nll, _ = _run(hidden, weight, labels, options, backend, strict)
    return loss, nll


def linear_cross_entropy_with_lse(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    divisor: float | Tensor,
    bias: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    label_weights: Tensor | None = None,
    z_loss: float = 0.0,
    chunk_tokens: int = 512,
    ignore_index: int = -100,
    backend: str = "auto",
    strict: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """`linear_cross_entropy` that also gives the log-sum-exp of each token's logits: (loss, nll, lse [tokens])."""
    options = (divisor, bias, softcap, logit_scale, label_weights, z_loss, chunk_tokens, ignore_index)
    return _run(hidden, weight, labels, options, backend, strict, "lse")


def _run(
    hidden: Tensor, weight: Tensor, labels: Tensor, options: tuple[Any, ...], backend: str, strict: bool, *wanted: str
) -> tuple[Tensor, Tensor, Any]:
    """The result of the chosen backend; `wanted` are further features that it must have."""
    divisor, bias, softcap, logit_scale, label_weights, z_loss, chunk_tokens, _ = options
    _check(hidden, weight, labels, bias, chunk_tokens)
    check_options(labels, divisor, label_weights, z_loss, softcap)
    used = {"softcap": softcap, "bias": bias is not None, "logit_scale": logit_scale != 1.0, "z_loss": z_loss}
    spec = spec_of(hidden, *(name for name, on in used.items() if on), *wanted)
    return choose(OPERATION, backend, spec, strict).function(hidden, weight, labels, *options)


def _check(hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None, chunk_tokens: int) -> None:
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(f"hidden {tuple(hidden.shape)} and weight {tuple(weight.shape)} must be [T, H] and [V, H]")
    if labels.shape != hidden.shape[:1]:
        raise ValueError(f"labels {tuple(labels.shape)} must be [{hidden.shape[0]}], one a token")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias {tuple(bias.shape)} must be [{weight.shape[0]}], one a word")
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens {chunk_tokens} must be at least 1")


class _ChunkedLinearCrossEntropy(torch.autograd.Function):
    """Its saved tensors are the finished gradients for a loss gradient of 1."""

    @staticmethod
    def forward(
        ctx: Any,
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
        rows_of: Rows,
        needs: tuple[bool, bool, bool],
    ) -> tuple[Tensor, Tensor, Tensor]:
        exact = exact_type(hidden)
        gemm = gemm_type(hidden)
        words = weight.to(gemm)
        nll = torch.zeros(hidden.shape[0], dtype=exact, device=hidden.device)
        lse = torch.zeros_like(nll)
        weights = token_weights(labels, label_weights, ignore_index, exact)
        grad_hidden = torch.empty_like(hidden) if needs[0] else None
        grad_weight = torch.zeros(weight.shape, dtype=exact, device=weight.device) if needs[1] else None
        grad_bias = torch.zeros(weight.shape[0], dtype=exact, device=weight.device) if needs[2] else None
        room = ChunkRoom(hidden, chunk_tokens, weight.shape[0])
        for start in range(0, hidden.shape[0], chunk_tokens):
            rows = slice(start, start + chunk_tokens)
            states = hidden[rows].to(gemm)
            logits = room.product(states, words.t(), exact)
            if bias is not None:
                logits += bias.to(exact)
            share = weights[rows] / divisor if any(needs) else None
            options = (z_loss, ignore_index, logit_scale, softcap)
            nll[rows], lse[rows], errors = rows_of(logits, labels[rows], share, *options)
            del logits
            if errors is None:
                continue
            if grad_bias is not None:
                grad_bias += errors.sum(0)
            errors = errors.to(gemm)
            if grad_hidden is not None:
                grad_hidden[rows] = torch.mm(errors, words)
            if grad_weight is not None:
                add_product(grad_weight, errors, states)
            # Or the next chunk's logits would be made while these are still there.
            del errors
        ctx.save_for_backward(
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None or bias is None else grad_bias.to(bias.dtype),
        )
        ctx.mark_non_differentiable(nll, lse)
        return loss_of(nll, lse, weights, z_loss) / divisor, nll, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight, grad_bias = (scaled(saved, grad_loss) for saved in ctx.saved_tensors)
        return grad_hidden, grad_weight, None, None, grad_bias, *(None,) * 8


def scaled(gradient: Tensor | None, factor: Tensor) -> Tensor | None:
    """A saved gradient times `factor`; itself where that is 1, which a CPU can look at without waiting.

    Autograd takes it over as the parameter's gradient unless the graph is kept, and else copies it.
    """
    if gradient is None or (factor.device.type == "cpu" and not is_compiling() and float(factor) == 1.0):
        return gradient
    return gradient * factor.to(gradient.dtype)


def exact_type(hidden: Tensor) -> torch.dtype:
    """What sums and losses are computed in."""
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32


def gemm_type(hidden: Tensor) -> torch.dtype:
    """What matrices are multiplied in: without AMX a bf16 product takes a CPU about 150 times longer than fp32."""
    return exact_type(hidden) if hidden.device.type == "cpu" else hidden.dtype


def matmul(left: Tensor, right: Tensor, out_dtype: torch.dtype) -> Tensor:
    """left @ right in `out_dtype`; a GPU adds up in it directly instead of rounding to the 16-bit input's type."""
    if left.dtype == out_dtype:
        return torch.mm(left, right)
    return torch.mm(left, right, out_dtype=out_dtype)


class ChunkRoom:
    """Memory for the logits of one chunk, used by every chunk.

    On a CPU new memory of this size is made of empty pages each time, which takes a few percent of the products' time.
    """

    def __init__(self, hidden: Tensor, chunk_tokens: int, num_words: int) -> None:
        self._memory = None
        if hidden.dtype == exact_type(hidden) and hidden.device.type == "cpu" and not is_compiling():
            self._memory = hidden.new_empty((min(chunk_tokens, hidden.shape[0]), num_words))

    def product(self, states: Tensor, words: Tensor, dtype: torch.dtype) -> Tensor:
        """states @ words in `dtype`; valid until the next call."""
        if self._memory is None:
            return matmul(states, words, dtype)
        return torch.mm(states, words, out=self._memory[: states.shape[0]])


def add_product(total: Tensor, errors: Tensor, states: Tensor) -> None:
    """total += errors.T @ states, added up in the dtype of `total`."""
    if errors.dtype == total.dtype:
        total.addmm_(errors.t(), states)
    else:
        total += matmul(errors.t(), states, total.dtype)


def _chunked(
    rows_of: Rows,
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    divisor: float | Tensor,
    bias: Tensor | None,
    *options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    # Inside the function every input looks as if gradients were off, so who needs one is settled here.
    recording = torch.is_grad_enabled()
    needs = (
        recording and hidden.requires_grad,
        recording and weight.requires_grad,
        recording and bias is not None and bias.requires_grad,
    )
    with torch.autocast(hidden.device.type, enabled=False):
        return _ChunkedLinearCrossEntropy.apply(hidden, weight, labels, divisor, bias, *options, rows_of, needs)


def _torch_chunked(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _chunked(torch_rows, *arguments)


def _triton_chunked(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _chunked(triton_rows, *arguments)


def _native_chunked(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _chunked(native_rows, *arguments)


def torch_supports(spec: Spec) -> str | None:
    """None for a dtype that torch multiplies matrices in, else the reason."""
    if spec.dtype in ("float32", "float64", "bfloat16", "float16"):
        return None
    return f"{spec.dtype} is no floating point type with GEMMs; use float32 or bfloat16"


register(OPERATION, triton_backend(OPERATION, _triton_chunked))
register(OPERATION, native_backend(OPERATION, _native_chunked))
register(OPERATION, Backend("torch", torch_supports, _torch_chunked))


def reference(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    divisor: float,
    bias: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    label_weights: Tensor | None = None,
    z_loss: float = 0.0,
    ignore_index: int = -100,
) -> tuple[Tensor, Tensor]:
    """The definition in float64 with all logits at once, differentiable by autograd: what backends are tested with."""
    logits = hidden.double() @ weight.double().t()
    if bias is not None:
        logits = logits + bias.double()
    nll, lse = logits_reference(logits, labels, ignore_index, logit_scale, softcap)
    weights = token_weights(labels, label_weights, ignore_index, torch.float64)
    return loss_of(nll, lse, weights, z_loss) / divisor, nll.detach()
