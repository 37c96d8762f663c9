"""The output layer that computes the loss itself.

The loss needs the head's whole weight, and ZeRO-3 and FSDP2 gather a weight only while its module's forward runs. So
the head of the loaded model becomes a `LossHead` in place: same parameters, same names, tied or not. Called without
labels it is the linear layer that it was. What a teacher says of the same tokens is a part of the same loss.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from cpt_kernels import KernelRefusedError, Softening, Spec, choose, linear_cross_entropy, linear_kl
from torch import Tensor, nn

from cpt_dist.errors import UserError


@dataclass
class SoftTargets:
    """What a teacher says of some of a micro-batch's tokens."""

    at: Tensor
    """int64 [n]: which tokens, in the order of the hidden states that the head gets."""
    hidden: Tensor
    """[n, teacher's hidden]: the teacher's last hidden states of them."""
    head: Callable[[], AbstractContextManager[Tensor]]
    """Makes the teacher's output layer [vocab, teacher's hidden] whole for a moment. Every rank calls it equally often,
    also with n = 0."""
    softening: Softening
    divisor: float
    """What the sum over tokens of temperature² x KL is divided by."""


class LossHead(nn.Linear):
    """A linear output layer [vocab, hidden] whose forward gives logits, or with labels the loss."""

    chunk_tokens: int = 512
    """Tokens whose logits exist at one time."""
    softcap: float | None = None
    """Bound of the logits: softcap * tanh(logits / softcap); None for none."""
    logit_scale: float = 1.0
    """Factor of the logits before the soft cap."""
    backend: str = "auto"
    """Who computes the loss: a backend of `linear_cross_entropy`, or auto."""
    distillation_backend: str = "auto"
    """Who computes the KL to a teacher: a backend of `linear_kl`, or auto."""
    strict: bool = True
    """Whether a backend that cannot run is an error."""

    @classmethod
    def replace(cls, head: nn.Module | None, config: Any, chunk_tokens: int) -> LossHead:
        """Turn the output layer of a model with this transformers config into a LossHead, in place.

        Raises UserError where the layer is no plain nn.Linear.
        """
        if type(head) is not nn.Linear:
            kind = "no output layer" if head is None else f"an output layer of type {type(head).__name__}"
            raise UserError(f"a {config.model_type} model has {kind}; a linear one is needed, use another model")
        head.__class__ = cls
        assert isinstance(head, cls)
        head.chunk_tokens = chunk_tokens
        head.softcap, head.logit_scale = softcap_of(config), logit_scale_of(config)
        return head

    def forward(  # type: ignore[override]
        self,
        hidden: Tensor,
        labels: Tensor | None = None,
        divisor: float | Tensor = 1.0,
        soft_targets: SoftTargets | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        """[tokens, hidden] -> (loss, nll [tokens]) as `linear_cross_entropy` gives them.

        With soft targets (loss, nll, kl [n]), where the loss is the sum of both. Without labels: [..., hidden] ->
        [..., vocab], the linear layer alone, without scale and soft cap.
        """
        if labels is None:
            return super().forward(hidden)
        loss, nll = linear_cross_entropy(
            hidden,
            self.weight,
            labels,
            divisor=divisor,
            bias=self.bias,
            softcap=self.softcap,
            logit_scale=self.logit_scale,
            chunk_tokens=self.chunk_tokens,
            backend=self.backend,
            strict=self.strict,
        )
        if soft_targets is None:
            return loss, nll
        with soft_targets.head() as teacher_weight:
            distilled, kl = linear_kl(
                hidden[soft_targets.at],
                self.weight,
                soft_targets.hidden,
                teacher_weight,
                divisor=soft_targets.divisor,
                softening=soft_targets.softening,
                chunk_tokens=self.chunk_tokens,
                backend=self.distillation_backend,
                strict=self.strict,
            )
        return loss + distilled, nll, kl

    def softening(self, teacher: LossHead, temperature: float) -> Softening:
        """How the logits of this head and of a teacher's become log-probabilities."""
        return Softening(temperature, self.logit_scale, self.softcap, teacher.logit_scale, teacher.softcap)

    def check_teacher(self, teacher: LossHead, device: str, dtype: torch.dtype) -> None:
        """Raise UserError where this head can't be distilled from `teacher`'s on `device` in `dtype`."""
        if self.bias is not None or teacher.bias is not None:
            whose = "model's" if self.bias is not None else "teacher's"
            raise UserError(f"distillation: the {whose} output layer has a bias, which isn't distilled; set it to null")
        if self.out_features != teacher.out_features:
            raise UserError(
                f"distillation.teacher: its output layer has {teacher.out_features} words and the model's "
                f"{self.out_features}; give a teacher of the same vocabulary"
            )
        capped = self.softcap is not None or teacher.softcap is not None
        try:
            spec = Spec(device, str(dtype).removeprefix("torch."), frozenset({"softcap"} if capped else ()))
            choose("linear_kl", self.distillation_backend, spec, self.strict)  # recorded: it is for training
        except KernelRefusedError as error:
            raise UserError(f"kernels.linear_kl: '{self.distillation_backend}': {error}; set it to auto") from None

    def check_backend(self, device: str, dtype: torch.dtype) -> None:
        """Raise UserError where the wanted backend cannot compute the loss on `device` in `dtype`."""
        try:
            spec = Spec(device, str(dtype).removeprefix("torch."))
            choose("linear_cross_entropy", self.backend, spec, self.strict, record=False)
        except KernelRefusedError as error:
            raise UserError(f"kernels.linear_cross_entropy: '{self.backend}': {error}; set it to auto") from None

    def finish(self, linear: Tensor) -> Tensor:
        """The model's logits in fp32 from those of the linear layer: scale and soft cap applied."""
        logits = linear.float() * self.logit_scale
        return logits if self.softcap is None else self.softcap * (logits / self.softcap).tanh()


def softcap_of(config: Any) -> float | None:
    """`final_logit_softcapping` of a config (Gemma 2, arXiv 2408.00118, section 2), None where unset."""
    return getattr(config, "final_logit_softcapping", None)


def logit_scale_of(config: Any) -> float:
    """Factor of the logits that a config asks for: Cohere's `logit_scale`, Granite's `logits_scaling` (a divisor)."""
    scale = getattr(config, "logit_scale", None)
    divisor = getattr(config, "logits_scaling", None)
    return (1.0 if scale is None else float(scale)) / (1.0 if divisor is None else float(divisor))
