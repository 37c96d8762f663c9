"""The output layer that computes the loss itself.

The loss needs the head's whole weight, and ZeRO-3 and FSDP2 gather a weight only while its module's forward runs. So
the head of the loaded model becomes a `LossHead` in place: same parameters, same names, tied or not. Called without
labels it is the linear layer that it was.
"""

from __future__ import annotations

from typing import Any

import torch
from cpt_kernels import KernelRefusedError, Spec, choose, linear_cross_entropy
from torch import Tensor, nn

from cpt_dist.errors import UserError


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
        self, hidden: Tensor, labels: Tensor | None = None, divisor: float | Tensor = 1.0
    ) -> Tensor | tuple[Tensor, Tensor]:
        """[tokens, hidden] -> (loss, nll [tokens]) as `linear_cross_entropy` gives them.

        Without labels: [..., hidden] -> [..., vocab], the linear layer alone, without scale and soft cap.
        """
        if labels is None:
            return super().forward(hidden)
        return linear_cross_entropy(
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
