"""A short real training on a small part of the domain, to see what the model learns from it.

One process, AdamW as every engine builds it, rows of whole documents packed as in training, the loss divided by the
target tokens of the step, gradients clipped. It makes no checkpoint; the model it is given is changed. What it shows
is a lower bound: a longer run with a tuned learning rate learns more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cpt_dist.config import OptimizerConfig, ScheduleConfig
from cpt_dist.engine.optimizer import adamw, parameter_groups, set_learning_rate
from cpt_dist.evaluation.bits_per_byte import IGNORED
from cpt_dist.model.packed import PackedCausalLM
from cpt_dist.schedules import learning_rate

LEAST_STEPS = 10
STEP_TOKENS = (256, 2048)
"""Fewest and most tokens of an optimizer step: short pilots take smaller ones, to make more of them."""
STEPS_WANTED = 50
LARGE_MODEL = 8e9
PEAK_SMALL, PEAK_LARGE = 3e-5, 1e-5
"""Peak learning rates for a base whose own is not known (docs/schedules.md), up to LARGE_MODEL parameters and above."""


@dataclass(frozen=True)
class PilotRun:
    """What a pilot did."""

    tokens: int
    steps: int
    seconds: float
    peak_lr: float
    step_tokens: int
    first_loss: float
    """Nats per target token of the first step."""
    last_loss: float
    out_of_time: bool


def default_peak(num_parameters: int) -> float:
    """Peak learning rate for a base whose own is not known."""
    return PEAK_SMALL if num_parameters <= LARGE_MODEL else PEAK_LARGE


def step_size(budget_tokens: int) -> int | None:
    """Tokens of a step for a pilot of `budget_tokens`; None where that makes fewer than LEAST_STEPS."""
    size = min(STEP_TOKENS[1], max(STEP_TOKENS[0], budget_tokens // STEPS_WANTED))
    return size if budget_tokens // size >= LEAST_STEPS else None


def pack_rows(documents: Sequence[np.ndarray], separator_id: int, row_tokens: int) -> list[list[np.ndarray]]:
    """Steps of a pilot: pieces of documents whose inputs are `row_tokens` together, the last short step left out.

    A document is int64 [context, text tokens…]; the separator is its last target. A piece of n inputs has n + 1 tokens.
    """
    steps: list[list[np.ndarray]] = [[]]
    room = row_tokens
    for document in documents:
        tokens = np.append(document, separator_id)
        start = 0
        while start < len(tokens) - 1:
            stop = min(start + room, len(tokens) - 1)
            steps[-1].append(tokens[start : stop + 1])
            room -= stop - start
            start = stop
            if not room:
                steps.append([])
                room = row_tokens
    return steps[:-1]


def _batch(pieces: Sequence[np.ndarray], device: torch.device) -> dict[str, torch.Tensor]:
    sizes = [len(piece) - 1 for piece in pieces]
    return {
        "input_ids": torch.from_numpy(np.concatenate([piece[:-1] for piece in pieces])).to(device),
        "labels": torch.from_numpy(np.concatenate([piece[1:] for piece in pieces])).to(device),
        "position_ids": torch.cat([torch.arange(size) for size in sizes]).to(device),
        "cu_seqlens": torch.tensor([0, *np.cumsum(sizes)], dtype=torch.int32).to(device),
    }


def train_pilot(
    model: PackedCausalLM,
    steps: Sequence[Sequence[np.ndarray]],
    *,
    peak_lr: float,
    seconds: float,
    report: Callable[[str], None] = lambda line: None,
) -> PilotRun:
    """Train `model` on `steps` (of `pack_rows`), at most about `seconds`; the model is left in eval mode.

    Warm-up over a tenth, a linear decay over the last fifth; where time runs out first, without that decay.
    """
    device = next(model.parameters()).device
    settings = OptimizerConfig()
    optimizer = adamw(parameter_groups(list(model.named_parameters()), settings), settings)
    schedule = ScheduleConfig(
        name="wsd", peak_lr=peak_lr, warmup=0.1, decay=0.2, decay_shape="linear", start_lr_ratio=0.0, min_lr_ratio=0.0
    )
    losses: list[float] = []
    tokens = 0
    begin = time.monotonic()
    model.train()
    for number, pieces in enumerate(steps, start=1):
        batch = _batch(pieces, device)
        targets = int((batch["labels"] != IGNORED).sum())
        loss, _ = model(**batch, divisor=targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        set_learning_rate(optimizer, learning_rate(schedule, number / len(steps)))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
        tokens += targets
        report(f"pilot: step {number} of {len(steps)}, loss {losses[-1]:.4f}")
        if time.monotonic() - begin > seconds:
            break
    model.eval()
    return PilotRun(
        tokens=tokens,
        steps=len(losses),
        seconds=time.monotonic() - begin,
        peak_lr=peak_lr,
        step_tokens=sum(len(piece) - 1 for piece in steps[0]),
        first_loss=losses[0],
        last_loss=losses[-1],
        out_of_time=len(losses) < len(steps),
    )
