"""Cross entropy of logits that are there: nll and log-sum-exp of each token, and the loss that is made of them.

What a loss adds to nll (weights of labels, a z-loss, the divisor) is plain torch on [tokens], so a backend computes
rows only: forward in one read of the logits, the gradient in one more, in their memory if asked. The loss is fp32 for
any dtype of the logits.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cpt_kernels.native import call
from cpt_kernels.registry import Backend, choose, register, spec_of
from cpt_kernels.triton_support import launch_settings, triton_backend

OPERATION = "cross_entropy"
Rows = Callable[
    [Tensor, Tensor, "Tensor | None", float, int, float, "float | None"], tuple[Tensor, Tensor, "Tensor | None"]
]
"""(raw logits, labels, share of each token or None, z_loss, ignore_index, logit_scale, softcap) -> (nll, log-sum-exp,
gradient by the raw logits in their memory, or None without a share)."""


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    divisor: float | Tensor,
    label_weights: Tensor | None = None,
    z_loss: float = 0.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    ignore_index: int = -100,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum over tokens of weight * (nll + z_loss * lse^2), over `divisor`; nll and lse of each token.

    x = softcap * tanh(logit_scale * logits / softcap) (Gemma 2, arXiv 2408.00118, section 2), or logit_scale * logits;
    lse = logsumexp(x), nll = lse - x[label]. The z-loss is that of PaLM (arXiv 2204.02311, section 5), there 1e-4.

    Args:
        logits: [tokens, vocab], floating point, also strided.
        labels: int64 [tokens], each in [0, vocab) or `ignore_index`, which adds nothing to the loss.
        divisor: positive number or 0-d tensor; it gets no gradient.
        label_weights: fp32 [tokens], factor of each token's part of the loss; it gets no gradient.

    Returns (loss 0-d, nll [tokens], 0 where ignored, lse [tokens]), all fp32 (fp64 for fp64), the last two without
    gradient. Raises ValueError for shapes or values that do not fit, or a refused backend.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(f"labels {tuple(labels.shape)} must be [tokens] of logits {tuple(logits.shape)}")
    check_options(labels, divisor, label_weights, z_loss, softcap)
    function = choose(OPERATION, backend, spec_of(logits)).function
    nll, lse = function(logits, labels, ignore_index, logit_scale, softcap)
    weights = token_weights(labels, label_weights, ignore_index, nll.dtype)
    return loss_of(nll, lse, weights, z_loss) / divisor, nll.detach(), lse.detach()


def check_options(
    labels: Tensor, divisor: float | Tensor, label_weights: Tensor | None, z_loss: float, softcap: float | None
) -> None:
    """Raise ValueError for options of a loss that make no sense."""
    if softcap is not None and softcap <= 0:
        raise ValueError(f"softcap {softcap} must be positive; None turns it off")
    if not isinstance(divisor, Tensor) and not divisor > 0:
        raise ValueError(f"divisor {divisor} must be positive")
    if label_weights is not None and label_weights.shape != labels.shape:
        raise ValueError(f"label_weights {tuple(label_weights.shape)} must be [{labels.shape[0]}], one a token")
    if z_loss < 0:
        raise ValueError(f"z_loss {z_loss} must not be negative; 0 turns it off")


def token_weights(labels: Tensor, label_weights: Tensor | None, ignore_index: int, dtype: torch.dtype) -> Tensor:
    """[tokens]: the factor of each token in the loss, 0 where its label is ignored."""
    valid = labels != ignore_index
    return valid.to(dtype) if label_weights is None else label_weights.detach().to(dtype).masked_fill(~valid, 0)


def loss_of(nll: Tensor, lse: Tensor, weights: Tensor, z_loss: float) -> Tensor:
    """Sum of weight * (nll + z_loss * lse^2); what has no weight adds nothing, even where it is not finite."""
    terms = nll if z_loss == 0 else nll + z_loss * lse.square()
    return (terms * weights).masked_fill(weights == 0, 0).sum()


def reference(
    logits: Tensor, labels: Tensor, ignore_index: int = -100, logit_scale: float = 1.0, softcap: float | None = None
) -> tuple[Tensor, Tensor]:
    """(nll, lse) by torch's own operations, in fp32 or, for float64, in float64; differentiable by autograd."""
    x = (logits if logits.dtype == torch.float64 else logits.float()) * logit_scale
    if softcap is not None:
        x = softcap * torch.tanh(x / softcap)
    nll = torch.nn.functional.cross_entropy(x, labels, ignore_index=ignore_index, reduction="none")
    return nll, x.logsumexp(1)


def torch_rows(
    logits: Tensor,
    labels: Tensor,
    share: Tensor | None,
    z_loss: float,
    ignore_index: int,
    logit_scale: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """`Rows` in torch; `share` is the derivative of the loss by each token's nll. The logits are overwritten."""
    target = labels.masked_fill(labels == ignore_index, 0)[:, None]
    if logit_scale != 1.0:
        logits *= logit_scale
    slope = None
    if softcap is not None:
        logits.div_(softcap).tanh_()
        slope = None if share is None else 1 - logits.square()
        logits *= softcap
    # The maximum leaves first: nll then has the error of the logits' differences, not of their size.
    largest = logits.amax(1, keepdim=True)
    logits -= largest
    score = logits.gather(1, target)
    denominator = logits.exp_().sum(1, keepdim=True)
    log_total = denominator.log()
    nll = (log_total - score)[:, 0].masked_fill(labels == ignore_index, 0)
    lse = (largest + log_total)[:, 0]
    if share is None:
        return nll, lse, None
    label_share = (share * logit_scale)[:, None]
    word_share = label_share if z_loss == 0 else label_share * (1 + 2 * z_loss * lse)[:, None]
    logits *= word_share / denominator
    logits.scatter_add_(1, target, -label_share)
    if slope is not None:
        logits *= slope
    return nll, lse, logits


def triton_rows(
    logits: Tensor,
    labels: Tensor,
    share: Tensor | None,
    z_loss: float,
    ignore_index: int,
    logit_scale: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """`Rows` by the Triton kernels; fp32 logits."""
    nll, lse, largest, log_total = _forward(logits, labels, ignore_index, logit_scale, softcap or 0.0)
    if share is None:
        return nll, lse, None
    word_share = share if z_loss == 0 else share * (1 + 2 * z_loss * lse)
    _gradient_in_place(logits, labels, largest, log_total, word_share, share, logit_scale, softcap or 0.0)
    return nll, lse, logits


@torch.library.custom_op("cpt_kernels::cross_entropy_rows", mutates_args=("logits",))
def _native_rows(
    logits: Tensor, labels: Tensor, share: Tensor | None, z_loss: float, ignore_index: int, logit_scale: float
) -> tuple[Tensor, Tensor]:
    num_tokens, num_words = logits.shape
    if bool(((labels != ignore_index) & ((labels < 0) | (labels >= num_words))).any()):
        raise IndexError(f"a label is neither in [0, {num_words}) nor {ignore_index}")
    nll, lse = logits.new_empty(num_tokens), logits.new_empty(num_tokens)
    tensors = (logits, labels.contiguous(), None if share is None else share.contiguous(), nll, lse)
    sizes = (num_tokens, num_words, logits.stride(0), ignore_index)
    call("cross_entropy_rows", logits.numel(), *tensors, *sizes, z_loss, logit_scale)
    return nll, lse


@_native_rows.register_fake
def _(
    logits: Tensor, labels: Tensor, share: Tensor | None, z_loss: float, ignore_index: int, logit_scale: float
) -> tuple[Tensor, Tensor]:
    return logits.new_empty(logits.shape[0]), logits.new_empty(logits.shape[0])


def native_rows(
    logits: Tensor,
    labels: Tensor,
    share: Tensor | None,
    z_loss: float,
    ignore_index: int,
    logit_scale: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """`Rows` by the C kernel; fp32 logits with neighbouring words, on a CPU, without a soft cap."""
    assert softcap is None
    nll, lse = _native_rows(logits, labels, share, z_loss, ignore_index, logit_scale)
    return nll, lse, None if share is None else logits


def _readable(logits: Tensor) -> Tensor:
    return logits if logits.stride(1) == 1 else logits.contiguous()


@torch.library.custom_op("cpt_kernels::cross_entropy", mutates_args=())
def _forward(
    logits: Tensor, labels: Tensor, ignore_index: int, logit_scale: float, softcap: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from cpt_kernels.jit.cross_entropy import cross_entropy_forward

    logits = _readable(logits)
    num_tokens, num_words = logits.shape
    nll, lse, largest, log_total = (
        torch.empty(num_tokens, dtype=torch.float32, device=logits.device) for _ in range(4)
    )
    if num_tokens:
        cross_entropy_forward[(num_tokens,)](
            logits,
            labels.contiguous(),
            nll,
            lse,
            largest,
            log_total,
            logits.stride(0),
            num_words,
            ignore_index,
            logit_scale,
            softcap or 1.0,
            HAS_SOFTCAP=softcap > 0,
            **launch_settings("cross_entropy_forward", num_words),
        )
    return nll, lse, largest, log_total


@_forward.register_fake
def _(
    logits: Tensor, labels: Tensor, ignore_index: int, logit_scale: float, softcap: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    nll, lse, largest, log_total = (logits.new_empty(logits.shape[0], dtype=torch.float32) for _ in range(4))
    return nll, lse, largest, log_total


def _launch_backward(
    logits: Tensor,
    labels: Tensor,
    largest: Tensor,
    log_total: Tensor,
    word_share: Tensor,
    label_share: Tensor,
    gradient: Tensor,
    logit_scale: float,
    softcap: float,
) -> None:
    from cpt_kernels.jit.cross_entropy import cross_entropy_backward

    num_tokens, num_words = logits.shape
    settings = launch_settings("cross_entropy_backward", num_words)
    if not logits.numel():
        return
    cross_entropy_backward[(num_tokens, -(-num_words // settings["BLOCK"]))](
        logits,
        labels.contiguous(),
        largest,
        log_total,
        word_share.contiguous(),
        label_share.contiguous(),
        gradient,
        logits.stride(0),
        gradient.stride(0),
        num_words,
        logit_scale,
        softcap or 1.0,
        HAS_SOFTCAP=softcap > 0,
        **settings,
    )


@torch.library.custom_op("cpt_kernels::cross_entropy_backward", mutates_args=())
def _gradient(
    logits: Tensor,
    labels: Tensor,
    largest: Tensor,
    log_total: Tensor,
    word_share: Tensor,
    label_share: Tensor,
    logit_scale: float,
    softcap: float,
) -> Tensor:
    logits = _readable(logits)
    gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
    _launch_backward(logits, labels, largest, log_total, word_share, label_share, gradient, logit_scale, softcap)
    return gradient


@_gradient.register_fake
def _(
    logits: Tensor,
    labels: Tensor,
    largest: Tensor,
    log_total: Tensor,
    word_share: Tensor,
    label_share: Tensor,
    logit_scale: float,
    softcap: float,
) -> Tensor:
    return logits.new_empty(logits.shape)


@torch.library.custom_op("cpt_kernels::cross_entropy_backward_in_place", mutates_args=("logits",))
def _gradient_in_place(
    logits: Tensor,
    labels: Tensor,
    largest: Tensor,
    log_total: Tensor,
    word_share: Tensor,
    label_share: Tensor,
    logit_scale: float,
    softcap: float,
) -> None:
    _launch_backward(logits, labels, largest, log_total, word_share, label_share, logits, logit_scale, softcap)


def _save(ctx, inputs, output):
    logits, labels, ctx.ignore_index, ctx.logit_scale, ctx.softcap = inputs
    ctx.save_for_backward(logits, labels, *output[2:])


def _differentiate(ctx, grad_nll, grad_lse, *_):
    logits, labels, largest, log_total = ctx.saved_tensors
    label_share = grad_nll.masked_fill(labels == ctx.ignore_index, 0)
    gradient = _gradient(
        logits, labels, largest, log_total, label_share + grad_lse, label_share, ctx.logit_scale, ctx.softcap
    )
    return gradient, None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)


def _triton(
    logits: Tensor, labels: Tensor, ignore_index: int, logit_scale: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    nll, lse, _, _ = _forward(logits, labels, ignore_index, logit_scale, softcap or 0.0)
    return nll, lse


register(OPERATION, triton_backend(OPERATION, _triton))
register(OPERATION, Backend("torch", lambda spec: None, reference))
