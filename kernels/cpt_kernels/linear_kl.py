"""Distillation of a teacher's next-token distribution into a student's, from hidden states: no logits are kept.

loss = sum of weight * T^2 * KL(teacher || student) over a divisor, both softened by the temperature T (Hinton et al.,
arXiv 1503.02531, section 2: T^2 keeps the gradient's size as T grows). As in `linear_cross_entropy` the logits of one
chunk of tokens exist at a time, here of both models, and the gradients are made in the forward pass. The teacher gets
none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cpt_kernels.linear_cross_entropy import (
    ChunkRoom,
    add_product,
    exact_type,
    gemm_type,
    scaled,
    torch_supports,
)
from cpt_kernels.native import call, native_backend
from cpt_kernels.registry import Backend, choose, register, spec_of
from cpt_kernels.triton_support import launch_settings, triton_backend

OPERATION = "linear_kl"
Rows = Callable[[Tensor, Tensor, Tensor, bool, "Softening"], Tensor]


class Softening:
    """How the logits of both models become log-probabilities."""

    def __init__(
        self,
        temperature: float = 1.0,
        logit_scale: float = 1.0,
        softcap: float | None = None,
        teacher_logit_scale: float = 1.0,
        teacher_softcap: float | None = None,
    ) -> None:
        """Scale and soft cap as in `linear_cross_entropy`. Raises ValueError for what is not positive."""
        given = {"temperature": temperature, "softcap": softcap, "teacher_softcap": teacher_softcap}
        for name, value in given.items():
            if value is not None and not value > 0:
                raise ValueError(f"{name} {value} must be positive")
        self.temperature = temperature
        self.student = (logit_scale, softcap)
        self.teacher = (teacher_logit_scale, teacher_softcap)


def linear_kl(
    hidden: Tensor,
    weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    *,
    divisor: float | Tensor,
    token_weights: Tensor | None = None,
    softening: Softening | None = None,
    chunk_tokens: int = 256,
    backend: str = "auto",
    strict: bool = True,
) -> tuple[Tensor, Tensor]:
    """Sum over tokens of weight * T^2 * KL(teacher || student) over `divisor`, and the KL of each token.

    Args:
        hidden: [tokens, hidden] of the student; `weight` [vocab, hidden] its head, used in the dtype of `hidden`.
        teacher_hidden: [tokens, teacher's hidden]; `teacher_weight` [vocab, teacher's hidden]. No gradient.
        divisor: positive number or 0-d tensor; it gets no gradient.
        token_weights: [tokens], factor of each token, 0 where it is masked; None for 1. It gets no gradient.
        softening: temperature, scales and soft caps; by default a temperature of 1.
        chunk_tokens: tokens whose logits, of both models, exist at one time: 8 bytes * vocab each.
        strict: whether a backend that cannot run is an error; else auto decides, with a warning.

    Returns (loss 0-d, kl [tokens], without gradient and without T^2), both fp32 (fp64 for fp64). Raises ValueError for
    shapes or values that do not fit, or a refused backend.
    """
    for name, states, head in (("hidden", hidden, weight), ("teacher_hidden", teacher_hidden, teacher_weight)):
        if states.ndim != 2 or head.ndim != 2 or states.shape[1] != head.shape[1]:
            raise ValueError(
                f"{name} {tuple(states.shape)} and its weight {tuple(head.shape)} must be [T, H] and [V, H]"
            )
    if hidden.shape[0] != teacher_hidden.shape[0] or weight.shape[0] != teacher_weight.shape[0]:
        raise ValueError("student and teacher must have the same tokens and the same vocabulary")
    if token_weights is not None and token_weights.shape != hidden.shape[:1]:
        raise ValueError(f"token_weights {tuple(token_weights.shape)} must be [{hidden.shape[0]}], one a token")
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens {chunk_tokens} must be at least 1")
    if not isinstance(divisor, Tensor) and not divisor > 0:
        raise ValueError(f"divisor {divisor} must be positive")
    softening = softening or Softening()
    capped = softening.student[1] or softening.teacher[1]
    function = choose(OPERATION, backend, spec_of(hidden, "softcap" if capped else ""), strict).function
    teacher = (teacher_hidden.detach(), teacher_weight.detach())
    return function(hidden, weight, *teacher, divisor, token_weights, softening, chunk_tokens)


class _ChunkedLinearKl(torch.autograd.Function):
    """Its saved tensors are the finished gradients for a loss gradient of 1."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        teacher_hidden: Tensor,
        teacher_weight: Tensor,
        divisor: float | Tensor,
        token_weights: Tensor | None,
        softening: Softening,
        chunk_tokens: int,
        rows_of: Rows,
        needs: tuple[bool, bool],
    ) -> tuple[Tensor, Tensor]:
        exact, gemm = exact_type(hidden), gemm_type(hidden)
        words, teacher_words = weight.to(gemm), teacher_weight.to(gemm)
        kl = torch.zeros(hidden.shape[0], dtype=exact, device=hidden.device)
        weights = torch.ones_like(kl) if token_weights is None else token_weights.detach().to(exact)
        factor = softening.temperature**2
        share = weights * factor / divisor
        grad_hidden = torch.empty_like(hidden) if needs[0] else None
        grad_weight = torch.zeros(weight.shape, dtype=exact, device=weight.device) if needs[1] else None
        room, teacher_room = (ChunkRoom(hidden, chunk_tokens, weight.shape[0]) for _ in range(2))
        for start in range(0, hidden.shape[0], chunk_tokens):
            rows = slice(start, start + chunk_tokens)
            states = hidden[rows].to(gemm)
            logits = room.product(states, words.t(), exact)
            teacher_logits = teacher_room.product(teacher_hidden[rows].to(gemm), teacher_words.t(), exact)
            kl[rows] = rows_of(logits, teacher_logits, share[rows], any(needs), softening)
            del teacher_logits
            if not any(needs):
                continue
            errors = logits.to(gemm)
            # Or the next chunk's logits would be made while these are still there.
            del logits
            if grad_hidden is not None:
                grad_hidden[rows] = torch.mm(errors, words)
            if grad_weight is not None:
                add_product(grad_weight, errors, states)
            del errors
        ctx.save_for_backward(grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype))
        ctx.mark_non_differentiable(kl)
        return (kl * share).masked_fill(weights == 0, 0).sum(), kl

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return *(scaled(saved, grad_loss) for saved in ctx.saved_tensors), *(None,) * 8


def _log_probabilities(logits: Tensor, scale: float, softcap: float | None, temperature: float) -> Tensor:
    """In the memory of the logits; with a soft cap its slope has to be taken before."""
    if scale != 1.0:
        logits *= scale
    if softcap is not None:
        logits.div_(softcap).tanh_().mul_(softcap)
    if temperature != 1.0:
        logits /= temperature
    logits -= logits.amax(1, keepdim=True)
    logits -= logits.exp().sum(1, keepdim=True).log_()
    return logits


def torch_rows(logits: Tensor, teacher: Tensor, share: Tensor, with_gradient: bool, softening: Softening) -> Tensor:
    """The KL of each row [tokens]; the student's logits become the gradient by them. Both are overwritten."""
    scale, softcap = softening.student
    slope = None
    if with_gradient and softcap is not None:
        slope = 1 - (logits * (scale / softcap)).tanh_().square_()
    student = _log_probabilities(logits, scale, softcap, softening.temperature)
    teacher = _log_probabilities(teacher, *softening.teacher, softening.temperature)
    probability = teacher.exp()
    # A word that the teacher excludes adds nothing, whatever the student says.
    kl = teacher.sub_(student).mul_(probability).masked_fill_(probability == 0, 0).sum(1)
    if with_gradient:
        student.exp_().sub_(probability).mul_((share * (scale / softening.temperature))[:, None])
        student.masked_fill_((share == 0)[:, None], 0)
        if slope is not None:
            student *= slope
    return kl


@torch.library.custom_op("cpt_kernels::kl_rows", mutates_args=("logits",))
def _rows(
    logits: Tensor,
    teacher: Tensor,
    share: Tensor,
    with_gradient: bool,
    temperature: float,
    scales: list[float],
    softcaps: list[float],
) -> Tensor:
    from cpt_kernels.jit.kl import kl_rows

    kl = torch.empty(logits.shape[0], dtype=torch.float32, device=logits.device)
    if logits.numel():
        kl_rows[(logits.shape[0],)](
            logits,
            teacher,
            share,
            kl,
            logits.stride(0),
            teacher.stride(0),
            logits.shape[1],
            *scales,
            *(cap or 1.0 for cap in softcaps),
            1.0 / temperature,
            HAS_STUDENT_SOFTCAP=softcaps[0] > 0,
            HAS_TEACHER_SOFTCAP=softcaps[1] > 0,
            WITH_GRADIENT=with_gradient,
            **launch_settings("kl_rows", logits.shape[1]),
        )
    return kl


@_rows.register_fake
def _(
    logits: Tensor,
    teacher: Tensor,
    share: Tensor,
    with_gradient: bool,
    temperature: float,
    scales: list[float],
    softcaps: list[float],
) -> Tensor:
    return logits.new_empty(logits.shape[0], dtype=torch.float32)


def triton_rows(logits: Tensor, teacher: Tensor, share: Tensor, with_gradient: bool, softening: Softening) -> Tensor:
    """`torch_rows` by the Triton kernel; the teacher's logits stay as they are."""
    (scale, cap), (teacher_scale, teacher_cap) = softening.student, softening.teacher
    scales, caps = [scale, teacher_scale], [cap or 0.0, teacher_cap or 0.0]
    return _rows(logits, teacher, share.contiguous(), with_gradient, softening.temperature, scales, caps)


@torch.library.custom_op("cpt_kernels::kl_rows_native", mutates_args=("logits",))
def _native_rows(
    logits: Tensor, teacher: Tensor, share: Tensor, with_gradient: bool, scale: float, teacher_scale: float
) -> Tensor:
    kl = logits.new_empty(logits.shape[0])
    sizes = (*logits.shape, logits.stride(0), teacher.stride(0))
    call("kl_rows", logits.numel(), logits, teacher, share, kl, *sizes, scale, teacher_scale, int(with_gradient))
    return kl


@_native_rows.register_fake
def _(
    logits: Tensor, teacher: Tensor, share: Tensor, with_gradient: bool, scale: float, teacher_scale: float
) -> Tensor:
    return logits.new_empty(logits.shape[0])


def native_rows(logits: Tensor, teacher: Tensor, share: Tensor, with_gradient: bool, softening: Softening) -> Tensor:
    """`torch_rows` by the C kernel, without soft caps; the teacher's logits stay as they are."""
    scale, teacher_scale = (one / softening.temperature for one, _ in (softening.student, softening.teacher))
    return _native_rows(logits, teacher, share.contiguous(), with_gradient, scale, teacher_scale)


def _chunked(rows_of: Rows, hidden: Tensor, weight: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    recording = torch.is_grad_enabled()
    needs = (recording and hidden.requires_grad, recording and weight.requires_grad)
    with torch.autocast(hidden.device.type, enabled=False):
        return _ChunkedLinearKl.apply(hidden, weight, *options, rows_of, needs)


def _torch_chunked(*arguments: Any) -> tuple[Tensor, Tensor]:
    return _chunked(torch_rows, *arguments)


def _triton_chunked(*arguments: Any) -> tuple[Tensor, Tensor]:
    return _chunked(triton_rows, *arguments)


def _native_chunked(*arguments: Any) -> tuple[Tensor, Tensor]:
    return _chunked(native_rows, *arguments)


register(OPERATION, triton_backend(OPERATION, _triton_chunked))
register(OPERATION, native_backend(OPERATION, _native_chunked))
register(OPERATION, Backend("torch", torch_supports, _torch_chunked))


def reference(
    hidden: Tensor,
    weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    *,
    divisor: float,
    token_weights: Tensor | None = None,
    softening: Softening | None = None,
) -> tuple[Tensor, Tensor]:
    """The definition in float64 with all logits at once, differentiable by autograd: what backends are tested with."""
    softening = softening or Softening()

    def log_probabilities(states: Tensor, head: Tensor, scale: float, softcap: float | None) -> Tensor:
        logits = states.double() @ head.double().t() * scale
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        return (logits / softening.temperature).log_softmax(1)

    student = log_probabilities(hidden, weight, *softening.student)
    teacher = log_probabilities(teacher_hidden.detach(), teacher_weight.detach(), *softening.teacher)
    kl = torch.nn.functional.kl_div(student, teacher, reduction="none", log_target=True).sum(1)
    weighted = kl if token_weights is None else kl * token_weights
    return weighted.sum() * softening.temperature**2 / divisor, kl.detach()
