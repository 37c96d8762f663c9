"""A trial at load time: does the model compute a packed document as transformers computes it alone?

One layer and a dozen tokens show at once whether documents leak, whether positions restart and whether the logits'
scale and soft cap are those of the architecture. It makes no statement on the later layers; those are counted in each
forward pass. The idea is the oracle test: a slow path that is trusted against a fast one that is not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from cpt_dist.errors import UserError
from cpt_dist.model.attention import IMPLEMENTATION
from cpt_dist.model.packed import PackedCausalLM

FIRST_TOKENS, SECOND_TOKENS = 5, 7
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}


@torch.no_grad()
def check_packing(model: PackedCausalLM, path: str) -> None:
    """Raise UserError where the second of two packed documents has other logits than alone through transformers.

    Does nothing where the weights are not here, as under DeepSpeed's zero.Init. Leaves the model in evaluation mode.
    """
    if any(parameter.numel() == 0 or parameter.is_meta for parameter in model.parameters()):
        return
    model.eval()
    device = next(model.parameters()).device
    vocab, total = model.config.vocab_size, FIRST_TOKENS + SECOND_TOKENS
    input_ids = torch.arange(1, total + 1, device=device) * (vocab // (total + 2) or 1) % vocab
    positions = torch.cat([torch.arange(n, device=device) for n in (FIRST_TOKENS, SECOND_TOKENS)])
    borders = torch.tensor([0, FIRST_TOKENS, total], dtype=torch.int32, device=device)
    with first_layer_only(model), any_attention(model):
        packed = model.logits(input_ids, positions, borders)[FIRST_TOKENS:]
        try:
            model.hf.set_attn_implementation("eager")
            alone = model.hf(input_ids=input_ids[None, FIRST_TOKENS:], use_cache=False).logits[0].float()
        finally:
            model.hf.set_attn_implementation(IMPLEMENTATION)
    difference = float((packed - alone).norm() / alone.norm())
    if not difference <= TOLERANCE.get(next(model.parameters()).dtype, 5e-2):
        raise UserError(
            f"model.path: '{path}': {type(model.hf).__name__} gives packed documents other logits than single ones "
            f"(off by {difference:.1%}); this architecture is not supported"
        )


@contextmanager
def first_layer_only(model: PackedCausalLM) -> Iterator[None]:
    """Inside the model has its first layer only."""
    layers = model.decoder_layers()
    owner, name = next(
        (module, name)
        for module in model.hf.base_model.modules()
        for name, child in module.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == len(layers) and child[0] is layers[0]
    )
    whole, windows = getattr(owner, name), model._windows
    model._windows = windows[:1]
    setattr(owner, name, nn.ModuleList(layers[:1]))
    try:
        yield
    finally:
        setattr(owner, name, whole)
        model._windows = windows


@contextmanager
def any_attention(model: PackedCausalLM) -> Iterator[None]:
    """Inside the model takes any attention backend that can run."""
    # The weights are still on the CPU in fp32, where the backend that the user wants may not run.
    wanted, model.attention = model.attention, "auto"
    try:
        yield
    finally:
        model.attention = wanted
