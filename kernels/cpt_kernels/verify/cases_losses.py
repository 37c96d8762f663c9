"""Cases of the losses (cross entropy of logits, linear cross entropy, linear KL) and of the AdamW step."""

from __future__ import annotations

from typing import Any

import torch

from cpt_kernels.adamw import adamw, clip_factor
from cpt_kernels.cross_entropy import cross_entropy
from cpt_kernels.linear_cross_entropy import linear_cross_entropy_with_lse
from cpt_kernels.linear_kl import Softening, linear_kl
from cpt_kernels.verify.case import Case, Inputs, Results
from cpt_kernels.verify.cases_layers import HUGE, LAYOUTS, random

IGNORED = -100
Options = dict[str, Any]


def _labels(tokens: int, vocab: int, ignored: str, generator: torch.Generator) -> torch.Tensor:
    labels = torch.randint(0, vocab, (tokens,), generator=generator)
    if ignored == "all":
        labels[:] = IGNORED
    elif ignored == "some":
        labels[::3] = IGNORED
    return labels


def _plain_loss(logits: torch.Tensor, inputs: Inputs, options: Options) -> Results:
    """A training loop's own loss: the logits widened to fp32, then torch's functions."""
    x = logits.float() * options.get("logit_scale", 1.0)
    if cap := options.get("softcap"):
        x = cap * torch.tanh(x / cap)
    nll = torch.nn.functional.cross_entropy(x, inputs["labels"], reduction="none", ignore_index=IGNORED)
    lse = x.logsumexp(1)
    terms = nll + options.get("z_loss", 0.0) * lse.square()
    terms = terms * (inputs["labels"] != IGNORED)
    if inputs["weights"] is not None:
        terms = terms * inputs["weights"]
    return {"loss": terms.sum() / 7.0, "nll": nll.detach(), "lse": lse.detach()}


def entropy_case(
    tokens: int,
    vocab: int,
    *,
    ignored: str = "some",
    scale: float = 1.0,
    layout: str = "",
    weighted: bool = False,
    large: bool = False,
    **options: Any,
) -> Case:
    """Cross entropy of logits [tokens, vocab]; `options` are those of the operation."""

    def make(dtype: torch.dtype, generator: torch.Generator) -> Inputs:
        return {
            "logits": LAYOUTS[layout](random((tokens, vocab), dtype, generator, scale)),
            "labels": _labels(tokens, vocab, ignored, generator),
            "weights": torch.rand(tokens, generator=generator) if weighted else None,
        }

    def run(inputs: Inputs, backend: str) -> Results:
        loss, nll, lse = cross_entropy(
            inputs["logits"],
            inputs["labels"],
            divisor=7.0,
            label_weights=inputs["weights"],
            backend=backend,
            **options,
        )
        return {"loss": loss, "nll": nll, "lse": lse}

    def plain(inputs: Inputs) -> Results:
        return _plain_loss(inputs["logits"], inputs, options)

    parts = [f"{tokens} x {vocab}", f"{ignored} ignored", layout, "weighted" if weighted else ""]
    parts += [f"{name} {value}" for name, value in options.items()] + (["huge"] if scale == HUGE else [])
    poison = "logits" if vocab > 7 and ignored == "none" and not layout and not large else ""
    return Case(
        "cross_entropy",
        ", ".join(filter(None, parts)),
        make,
        run,
        plain,
        ("logits",),
        poison=poison,
        large=large or layout == "far rows",
    )


def linear_case(
    tokens: int, hidden: int, vocab: int, *, with_bias: bool = False, weighted: bool = False, **options: Any
) -> Case:
    """Linear cross entropy; `options` are those of the operation."""

    def make(dtype: torch.dtype, generator: torch.Generator) -> Inputs:
        return {
            "hidden": random((tokens, hidden), dtype, generator),
            "weight": random((vocab, hidden), dtype, generator, 0.3),
            "bias": random((vocab,), dtype, generator) if with_bias else None,
            "labels": _labels(tokens, vocab, "some", generator),
            "weights": torch.rand(tokens, generator=generator) if weighted else None,
        }

    def run(inputs: Inputs, backend: str) -> Results:
        loss, nll, lse = linear_cross_entropy_with_lse(
            inputs["hidden"],
            inputs["weight"],
            inputs["labels"],
            divisor=7.0,
            bias=inputs["bias"],
            label_weights=inputs["weights"],
            chunk_tokens=4,
            backend=backend,
            **options,
        )
        return {"loss": loss, "nll": nll, "lse": lse}

    def plain(inputs: Inputs) -> Results:
        logits = torch.nn.functional.linear(inputs["hidden"], inputs["weight"], inputs["bias"])
        return _plain_loss(logits, inputs, options)

    parts = [f"{tokens} x {hidden} x {vocab}", "bias" if with_bias else "", "weighted" if weighted else ""]
    parts += [f"{name} {value}" for name, value in options.items()]
    trained = ("hidden", "weight", "bias") if with_bias else ("hidden", "weight")
    return Case("linear_cross_entropy", ", ".join(filter(None, parts)), make, run, plain, trained)


def kl_case(
    tokens: int,
    vocab: int,
    *,
    weighted: bool = False,
    scale: float = 0.5,
    trained: tuple[str, ...] = ("hidden", "weight"),
    large: bool = False,
    **softening: Any,
) -> Case:
    """Linear KL; `softening` as in `Softening`."""
    hidden, teacher_hidden = 6, 9

    def make(dtype: torch.dtype, generator: torch.Generator) -> Inputs:
        return {
            "hidden": random((tokens, hidden), dtype, generator),
            "weight": random((vocab, hidden), dtype, generator, scale),
            "teacher_hidden": random((tokens, teacher_hidden), dtype, generator),
            "teacher_weight": random((vocab, teacher_hidden), dtype, generator, scale),
            "weights": torch.rand(tokens, generator=generator).round(decimals=0) if weighted else None,
        }

    def run(inputs: Inputs, backend: str) -> Results:
        names = ("hidden", "weight", "teacher_hidden", "teacher_weight")
        loss, kl = linear_kl(
            *(inputs[name] for name in names),
            divisor=7.0,
            token_weights=inputs["weights"],
            softening=Softening(**softening),
            chunk_tokens=4,
            backend=backend,
        )
        return {"loss": loss, "kl": kl}

    def plain(inputs: Inputs) -> Results:
        def scores(states: torch.Tensor, head: torch.Tensor, factor: float, cap: float | None) -> torch.Tensor:
            x = torch.nn.functional.linear(states, head).float() * factor
            x = x if cap is None else cap * torch.tanh(x / cap)
            return (x / softening.get("temperature", 1.0)).log_softmax(1)

        student = scores(
            inputs["hidden"], inputs["weight"], softening.get("logit_scale", 1.0), softening.get("softcap")
        )
        teacher = scores(
            inputs["teacher_hidden"],
            inputs["teacher_weight"],
            softening.get("teacher_logit_scale", 1.0),
            softening.get("teacher_softcap"),
        )
        kl = torch.nn.functional.kl_div(student, teacher, reduction="none", log_target=True).sum(1)
        weighted_kl = kl if inputs["weights"] is None else kl * inputs["weights"]
        return {"loss": weighted_kl.sum() * softening.get("temperature", 1.0) ** 2 / 7.0, "kl": kl.detach()}

    parts = [f"{tokens} x {vocab}", "weighted" if weighted else "", *(f"{k} {v}" for k, v in softening.items())]
    parts += ["huge" if scale > 100 else ""]
    return Case("linear_kl", ", ".join(filter(None, parts)), make, run, plain, trained, large=large)


def adamw_case(
    shape: tuple[int, ...], *, step: int = 1, clip: float = 0.0, large: bool = False, **options: Any
) -> Case:
    """An AdamW step of one tensor."""
    names = ("parameter", "gradient", "mean", "square")

    def make(dtype: torch.dtype, generator: torch.Generator) -> Inputs:
        inputs: Inputs = {name: torch.randn(shape, generator=generator) for name in ("parameter", "mean")}
        inputs["gradient"] = random(shape, dtype, generator, 0.1)
        inputs["square"] = torch.rand(shape, generator=generator)
        inputs["factor"] = clip_factor(inputs["gradient"].float().norm(), clip)
        return inputs

    def run(inputs: Inputs, backend: str) -> Results:
        tensors = {name: inputs[name].clone() for name in names}
        adamw(
            *([tensors[name]] for name in names),
            step=step,
            learning_rate=1e-2,
            factor=inputs["factor"],
            backend=backend,
            **options,
        )
        return {name: tensors[name] for name in ("parameter", "mean", "square")}

    def plain(inputs: Inputs) -> Results:
        return run(inputs, "torch")

    name = ", ".join([" x ".join(map(str, shape)), f"step {step}", f"clipped to {clip}" if clip else "unclipped"])
    return Case("adamw", name, make, run, plain, large=large)


CASES = [
    entropy_case(1, 1, ignored="none"),
    entropy_case(3, 7),
    entropy_case(5, 100, ignored="none"),
    entropy_case(5, 100, ignored="all"),
    entropy_case(4, 101, softcap=3.0, logit_scale=0.5, z_loss=1e-2, weighted=True),
    entropy_case(6, 33, layout="strided", logit_scale=0.25),
    entropy_case(2, 24, layout="far rows"),
    entropy_case(4, 128, scale=HUGE, ignored="none"),
    entropy_case(2, 4097, ignored="none", layout="rising"),
    entropy_case(3, 49152, softcap=30.0, z_loss=1e-4, large=True),
    linear_case(11, 24, 101),
    linear_case(9, 7, 50, with_bias=True, weighted=True, softcap=3.0, logit_scale=2.0, z_loss=1e-3),
    kl_case(3, 1),
    kl_case(6, 50),
    # Not many more words: the gradient of a random head is a sum that cancels, and torch itself is above the limit.
    kl_case(5, 2100, temperature=2.0, weighted=True),
    kl_case(5, 33, softcap=3.0, logit_scale=0.5, teacher_softcap=5.0, teacher_logit_scale=2.0, temperature=0.5),
    kl_case(3, 49152, trained=(), large=True),
    adamw_case((1,)),
    adamw_case((33, 50), step=10, clip=0.5, weight_decay=0.1, betas=(0.9, 0.95)),
    adamw_case((1024, 5), step=100000, weight_decay=0.1, betas=(0.9, 0.99999), large=True),
]
