"""Cases of packed attention, and that no document sees another."""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention

from cpt_kernels.attention import document_attention, first_keys
from cpt_kernels.verify.case import Case, Finding, Inputs, Results
from cpt_kernels.verify.cases_layers import random, strided


def attention_case(
    heads: tuple[int, int],
    lengths: tuple[int, ...],
    head_dim: int,
    *,
    window: int | None = None,
    keys_before: int = 0,
    layout: str = "",
    large: bool = False,
) -> Case:
    """Attention of documents of these lengths by (query heads, key heads)."""
    tokens = sum(lengths)

    def make(dtype: torch.dtype, generator: torch.Generator) -> Inputs:
        sizes = {"query": (heads[0], tokens), "key": (heads[1], tokens + keys_before)}
        inputs: Inputs = {}
        for name, of in (("query", "query"), ("key", "key"), ("value", "key")):
            count, length = sizes[of]
            # As a projection gives it: a token's heads lie beside each other.
            x = random((length, count, head_dim), dtype, generator).transpose(0, 1)
            inputs[name] = strided(x) if layout else x
        inputs["cu_seqlens"] = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
        return inputs

    def run(inputs: Inputs, backend: str) -> Results:
        tensors = (inputs[name] for name in ("query", "key", "value", "cu_seqlens"))
        return {"out": document_attention(*tensors, window=window, keys_before=keys_before, backend=backend)}

    def plain(inputs: Inputs) -> Results:
        first = first_keys(inputs["cu_seqlens"], tokens, window, keys_before)
        key = torch.arange(tokens + keys_before)
        own = torch.arange(tokens) + keys_before
        mask = (key[None] <= own[:, None]) & (key[None] >= first[:, None])
        query, key_states, value = (inputs[name][None] for name in ("query", "key", "value"))
        out = scaled_dot_product_attention(query, key_states, value, attn_mask=mask, enable_gqa=True)
        return {"out": out[0].transpose(0, 1)}

    parts = [f"heads {heads[0]}/{heads[1]}", f"documents {'+'.join(map(str, lengths))}", f"{head_dim} dimensions"]
    parts += [f"window {window}" if window else "", f"{keys_before} keys before" if keys_before else "", layout]
    name = ", ".join(filter(None, parts))
    return Case("document_attention", name, make, run, plain, ("query", "key", "value"), large=large)


CASES = [
    attention_case((1, 1), (1,), 16),
    attention_case((3, 1), (5, 1, 64, 7), 16),
    attention_case((2, 1), (40, 30), 20, layout="strided"),
    attention_case((2, 2), (90,), 16, window=10),
    attention_case((2, 1), (30, 20), 16, keys_before=37),
    attention_case((9, 3), (50, 1, 69, 80), 64, large=True),
    attention_case((2, 1), (20, 30), 128, large=True),
    attention_case((2, 1), (30, 90), 16, keys_before=100, window=33, large=True),
]


def check_documents(backend: str = "triton") -> list[Finding]:
    """Changing one document leaves output and gradients of another bit-equal, forward and backward."""
    generator = torch.Generator().manual_seed(3)
    lengths, heads, tokens = (33, 40, 20), 2, 93
    borders = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    first = [torch.randn(heads, tokens, 16, generator=generator) for _ in range(4)]
    second = [tensor.clone() for tensor in first]
    for tensor in second:
        tensor[:, 33:73] = torch.randn(heads, 40, 16, generator=generator) * 3
    results = []
    for query, key, value, cotangent in (first, second):
        leaves = query.requires_grad_(), key.requires_grad_(), value.requires_grad_()
        out = document_attention(query, key, value, borders, backend=backend)
        gradients = torch.autograd.grad(out, leaves, cotangent.transpose(0, 1))
        results.append([out.detach().transpose(0, 1), *gradients])
    changed = 0
    for one, other in zip(*results, strict=True):
        kept = torch.ones(tokens, dtype=torch.bool)
        kept[33:73] = False
        changed += int((one[:, kept] != other[:, kept]).sum())
    case = "documents " + "+".join(map(str, lengths))
    what = "elements that another document changes"
    return [Finding("document_attention", case, "float32", what, changed, 0)]
