"""Cross entropy of a linear layer's output without the output: logits exist for one chunk of tokens at a time.

The gradients are computed in the forward pass, chunk by chunk, and only scaled in the backward pass (the way of Liger
Kernel's fused linear cross entropy, arXiv 2410.10989, section 3.2). It is not torch's `F.linear_cross_entropy`, which
in 2.13 adds up a bf16 loss over chunks in bf16 (off by 1 nat of 12). The caller gives the divisor of the loss, so that
accumulation over micro-batches and ranks can be exact.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cpt_kernels.registry import Backend, Spec, choose, register

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
    chunk_tokens: int = 512,
    ignore_index: int = -100,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Sum of the tokens' negative log-likelihood over `divisor`, and the nll of each token.

    logits = logit_scale * (hidden @ weight.T + bias), then softcap * tanh(logits / softcap) where softcap is set
    (Gemma 2, arXiv 2408.00118, section 2); nll[t] = logsumexp(logits[t]) - logits[t, labels[t]].

    Args:
        hidden: [tokens, hidden], floating point.
        weight: [vocab, hidden]; it is used in the dtype of `hidden`.
        labels: [tokens] int64, each in [0, vocab) or `ignore_index`.
        divisor: positive number or 0-d tensor on the device of `hidden`; it gets no gradient.
        bias: [vocab] or None.
        chunk_tokens: tokens whose logits exist at one time: chunk_tokens * vocab * 4 bytes, twice that with softcap
            or 16-bit input.
        backend: name of a registered backend, or auto.

    Returns (loss, nll): loss is 0-d, nll is [tokens], 0 where ignored and without gradient. Both are fp32 (fp64 for
    fp64 input), whatever the dtype of the input. Nothing is computed for gradients that nobody asked for.

    Raises ValueError for shapes that do not fit, a divisor that is not positive, or a refused backend.
    """
    _check(hidden, weight, labels, bias, divisor, chunk_tokens, softcap)
    features = frozenset(name for name, on in {"softcap": softcap, "bias": bias is not None}.items() if on)
    spec = Spec(hidden.device.type, str(hidden.dtype).removeprefix("torch."), features)
    function = choose(OPERATION, backend, spec).function
    return function(hidden, weight, labels, divisor, bias, softcap, logit_scale, chunk_tokens, ignore_index)


def _check(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    divisor: float | Tensor,
    chunk_tokens: int,
    softcap: float | None,
) -> None:
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(f"hidden {tuple(hidden.shape)} and weight {tuple(weight.shape)} must be [T, H] and [V, H]")
    if labels.shape != hidden.shape[:1]:
        raise ValueError(f"labels {tuple(labels.shape)} must be [{hidden.shape[0]}], one a token")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias {tuple(bias.shape)} must be [{weight.shape[0]}], one a word")
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens {chunk_tokens} must be at least 1")
    if softcap is not None and softcap <= 0:
        raise ValueError(f"softcap {softcap} must be positive; None turns it off")
    if not isinstance(divisor, Tensor) and not divisor > 0:
        raise ValueError(f"divisor {divisor} must be positive")


class _ChunkedLinearCrossEntropy(torch.autograd.Function):
    """The torch backend. Its saved tensors are the finished gradients for a loss gradient of 1."""

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
        chunk_tokens: int,
        ignore_index: int,
        needs: tuple[bool, bool, bool],
    ) -> tuple[Tensor, Tensor]:
        exact = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        # Without AMX a bf16 GEMM takes a CPU about 150 times longer than an fp32 one.
        gemm = exact if hidden.device.type == "cpu" else hidden.dtype
        words = weight.to(gemm)
        nll = torch.zeros(hidden.shape[0], dtype=exact, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if needs[0] else None
        grad_weight = torch.zeros(weight.shape, dtype=exact, device=weight.device) if needs[1] else None
        grad_bias = torch.zeros(weight.shape[0], dtype=exact, device=weight.device) if needs[2] else None
        for start in range(0, hidden.shape[0], chunk_tokens):
            rows = slice(start, start + chunk_tokens)
            states, valid = hidden[rows].to(gemm), labels[rows] != ignore_index
            share = (valid.to(exact) * logit_scale / divisor)[:, None] if any(needs) else None
            target = labels[rows].masked_fill(~valid, 0)[:, None]
            chunk_nll, errors = _nll_and_errors(states, words, bias, target, share, softcap, logit_scale)
            nll[rows] = chunk_nll.masked_fill(~valid, 0)
            if errors is None:
                continue
            if grad_bias is not None:
                grad_bias += errors.sum(0)
            errors = errors.to(gemm)
            if grad_hidden is not None:
                grad_hidden[rows] = torch.mm(errors, words)
            if grad_weight is not None:
                if gemm == exact:
                    grad_weight.addmm_(errors.t(), states)
                else:
                    grad_weight += _matmul(errors.t(), states, exact)
            # Or the next chunk's logits would be made while these are still there.
            del errors
        ctx.save_for_backward(
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None or bias is None else grad_bias.to(bias.dtype),
        )
        ctx.mark_non_differentiable(nll)
        return nll.sum() / divisor, nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, grad_nll: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight, grad_bias = (
            None if saved is None else saved * grad_loss.to(saved.dtype) for saved in ctx.saved_tensors
        )
        return grad_hidden, grad_weight, None, None, grad_bias, None, None, None, None, None


def _nll_and_errors(
    states: Tensor,
    words: Tensor,
    bias: Tensor | None,
    target: Tensor,
    share: Tensor | None,
    softcap: float | None,
    logit_scale: float,
) -> tuple[Tensor, Tensor | None]:
    """One chunk: nll [tokens], and in the memory of the logits the gradient of the loss by hidden @ weight.T + bias.

    `target` is [tokens, 1]; `share` [tokens, 1] is the derivative of the loss by a token's nll times `logit_scale`,
    or None where no gradient is wanted.
    """
    exact = torch.float64 if states.dtype == torch.float64 else torch.float32
    logits = _matmul(states, words.t(), exact)
    if bias is not None:
        logits += bias.to(exact)
    if logit_scale != 1.0:
        logits *= logit_scale
    slope = None
    if softcap is not None:
        logits.div_(softcap).tanh_()
        slope = None if share is None else 1 - logits.square()
        logits *= softcap
    # The maximum leaves first: nll then has the error of the logits' differences, not of their size.
    logits -= logits.amax(1, keepdim=True)
    score = logits.gather(1, target)
    denominator = logits.exp_().sum(1, keepdim=True)
    nll = (denominator.log() - score)[:, 0]
    if share is None:
        return nll, None
    logits *= share / denominator
    logits.scatter_add_(1, target, -share)
    if slope is not None:
        logits *= slope
    return nll, logits


def _matmul(left: Tensor, right: Tensor, out_dtype: torch.dtype) -> Tensor:
    """left @ right in `out_dtype`; a GPU adds up in it directly instead of rounding to the 16-bit input's type."""
    if left.dtype == out_dtype:
        return torch.mm(left, right)
    return torch.mm(left, right, out_dtype=out_dtype)


def _torch_chunked(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    divisor: float | Tensor,
    bias: Tensor | None,
    softcap: float | None,
    logit_scale: float,
    chunk_tokens: int,
    ignore_index: int,
) -> tuple[Tensor, Tensor]:
    # Inside the function every input looks as if gradients were off, so who needs one is settled here.
    recording = torch.is_grad_enabled()
    needs = (
        recording and hidden.requires_grad,
        recording and weight.requires_grad,
        recording and bias is not None and bias.requires_grad,
    )
    with torch.autocast(hidden.device.type, enabled=False):
        return _ChunkedLinearCrossEntropy.apply(
            hidden, weight, labels, divisor, bias, softcap, logit_scale, chunk_tokens, ignore_index, needs
        )


def _torch_supports(spec: Spec) -> str | None:
    if spec.dtype in ("float32", "float64", "bfloat16", "float16"):
        return None
    return f"{spec.dtype} is no floating point type with GEMMs; use float32 or bfloat16"


register(OPERATION, Backend("torch", _torch_supports, _torch_chunked))


def reference(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    divisor: float,
    bias: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    ignore_index: int = -100,
) -> tuple[Tensor, Tensor]:
    """The definition in float64 with all logits at once, differentiable by autograd: what backends are tested with."""
    logits = hidden.double() @ weight.double().t()
    if bias is not None:
        logits = logits + bias.double()
    logits = logits * logit_scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    nll = torch.nn.functional.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="none")
    return nll.sum() / divisor, nll.detach()
