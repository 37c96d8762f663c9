"""Models as the callables that `bits_per_byte` and `suites.answers` want.

`packed_scorer` is the way of the programs. `plain_scorer` asks any `AutoModelForCausalLM` one piece at a time, with
nothing of ours in between: slower, for models that `cpt_dist.model` can't patch, and the reference in tests. An
engine in training needs no scorer: its `nll` is one, and its `logits_at` is what `packed_logits` makes of a model.
"""

from __future__ import annotations

import itertools

import torch
from torch import nn

from cpt_dist.evaluation.bits_per_byte import IGNORED, Score
from cpt_dist.evaluation.suites.answers import Decode, Logits
from cpt_dist.model.decoding import Continuation
from cpt_dist.model.packed import PackedCausalLM


def packed_scorer(model: nn.Module, device: torch.device | str = "cpu") -> Score:
    """Score with a `cpt_dist.model.packed.PackedCausalLM`, which must be on `device` and in eval mode."""

    @torch.no_grad()
    def score(
        input_ids: torch.Tensor, labels: torch.Tensor, position_ids: torch.Tensor, cu_seqlens: torch.Tensor
    ) -> torch.Tensor:
        _, nll = model(
            input_ids=input_ids.to(device),
            labels=labels.to(device),
            position_ids=position_ids.to(device),
            cu_seqlens=cu_seqlens.to(device),
            divisor=1,
        )
        return nll

    return score


def packed_logits(model: nn.Module, device: torch.device | str = "cpu") -> Logits:
    """Logits of a `cpt_dist.model.packed.PackedCausalLM`, which must be on `device` and in eval mode."""

    @torch.no_grad()
    def logits(
        input_ids: torch.Tensor, position_ids: torch.Tensor, cu_seqlens: torch.Tensor, at: torch.Tensor
    ) -> torch.Tensor:
        return model(
            input_ids=input_ids.to(device),
            labels=None,
            position_ids=position_ids.to(device),
            cu_seqlens=cu_seqlens.to(device),
            at=at.to(device),
        )

    return logits


def packed_decode(model: PackedCausalLM, device: torch.device | str = "cpu") -> Decode:
    """Continuations by a `PackedCausalLM` that this process holds whole, on `device` and in eval mode."""
    return lambda texts, most: Continuation(model, device, texts, most)


def plain_scorer(model: nn.Module, device: torch.device | str = "cpu") -> Score:
    """Score with a transformers causal language model, which must be on `device` and in eval mode."""

    @torch.no_grad()
    def score(
        input_ids: torch.Tensor, labels: torch.Tensor, position_ids: torch.Tensor, cu_seqlens: torch.Tensor
    ) -> torch.Tensor:
        nll = torch.zeros(len(input_ids), dtype=torch.float32, device=device)
        bounds = cu_seqlens.tolist()
        for start, stop in itertools.pairwise(bounds):
            logits = model(input_ids=input_ids[None, start:stop].to(device), use_cache=False).logits[0]
            nll[start:stop] = nn.functional.cross_entropy(
                logits.float(), labels[start:stop].to(device), ignore_index=IGNORED, reduction="none"
            )
        return nll

    return score
