"""What flash-attn's functions are called with, against a stand-in that computes what their documentation says.

The kernels themselves need a GPU and have not been measured on one.
"""

import math
import sys
import types
from itertools import pairwise

import pytest
import torch

from cpt_dist.engine.context.blocks import Block, FlashKernel, ProductKernel
from cpt_dist.model import attention
from cpt_dist.model.attention import Documents, Heads

SCALE = 0.3
BLOCKS = {
    "own documents": Block([0, 5, 6, 11], True, 11),
    "own documents in a window": Block([0, 5, 6, 11], True, 11, 0, 3),
    "keys before": Block([0, 4], False, 7, 7),
    "keys before in a window": Block([0, 4], False, 7, 9, 8),
}


def visible(num_queries, num_keys, causal, left):
    """Both are aligned to the last key of the last query, as flash-attn says since version 2.1."""
    place = torch.arange(num_queries)[:, None] + num_keys - num_queries
    key = torch.arange(num_keys)[None]
    return (key <= place if causal else key >= 0) & (key >= place - left if left >= 0 else key >= 0)


def attend(q, k, v, borders, key_borders, causal, left, scale):
    attended, lse = [], []
    groups = q.shape[1] // k.shape[1]
    for (a, b), (c, d) in zip(pairwise(borders.tolist()), pairwise(key_borders.tolist()), strict=True):
        keys, values = (part[c:d].repeat_interleave(groups, 1).transpose(0, 1) for part in (k, v))
        scores = q[a:b].transpose(0, 1) @ keys.mT * scale
        scores = scores.masked_fill(~visible(b - a, d - c, causal, left), -math.inf)
        lse.append(scores.logsumexp(-1))
        attended.append((scores.softmax(-1) @ values).transpose(0, 1))
    return torch.cat(attended), torch.cat(lse, dim=1)


def forward(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, softmax_scale, causal,
    window_size_left=-1, window_size_right=-1, softcap=0.0, alibi_slopes=None, return_softmax=False,
):  # fmt: skip
    assert (max_seqlen_q, max_seqlen_k) == tuple(int(one.diff().max()) for one in (cu_seqlens_q, cu_seqlens_k))
    assert window_size_right == (0 if causal else -1)
    found = attend(q, k, v, cu_seqlens_q, cu_seqlens_k, causal, window_size_left, softmax_scale)
    return *found, None, None


def backward(
    dout, q, k, v, out, softmax_lse, dq, dk, dv, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p,
    softmax_scale, causal, window_size_left, window_size_right, softcap, alibi_slopes, deterministic, rng_state=None,
):  # fmt: skip
    """Of rows that have further keys elsewhere: weights from the whole row's log-sum-exp."""
    parts = [part.detach().clone().requires_grad_() for part in (q, k, v)]
    with torch.enable_grad():
        _, lse = attend(*parts, cu_seqlens_q, cu_seqlens_k, causal, window_size_left, softmax_scale)
        found, _ = attend(*parts, cu_seqlens_q, cu_seqlens_k, causal, window_size_left, softmax_scale)
        share = (lse - softmax_lse).exp().T[..., None]
        change = (found * share.detach() * dout).sum() + (((found.detach() - out) * dout).sum(-1) * share[..., 0]).sum()
    for target, gradient in zip((dq, dk, dv), torch.autograd.grad(change, parts), strict=True):
        target.copy_(gradient)


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    package, interface = types.ModuleType("flash_attn"), types.ModuleType("flash_attn.flash_attn_interface")
    interface._flash_attn_varlen_forward, interface._flash_attn_varlen_backward = forward, backward

    def varlen(q, k, v, *, causal, window_size, dropout_p, **others):
        left, right = window_size
        return forward(q, k, v, dropout_p=dropout_p, causal=causal, window_size_left=left,
                       window_size_right=0 if causal else right, **others)[0]  # fmt: skip

    package.flash_attn_varlen_func = varlen
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setitem(sys.modules, "flash_attn.flash_attn_interface", interface)


def inputs(num_queries, num_keys):
    torch.manual_seed(1)
    return [torch.randn(num_queries, 6, 8), torch.randn(num_keys, 2, 8), torch.randn(num_keys, 2, 8)]


@pytest.mark.parametrize("name", BLOCKS)
def test_both_kernels_of_a_ring_compute_the_same_blocks(name):
    block = BLOCKS[name]
    parts = inputs(block.borders[-1], block.num_keys)
    ours, theirs = (kernel.forward(*parts, block, SCALE) for kernel in (FlashKernel(), ProductKernel()))
    torch.testing.assert_close(ours, theirs)
    gradient = torch.randn_like(parts[0])
    # As of rows that found as much again elsewhere.
    whole = (theirs[0] + torch.randn_like(parts[0]), theirs[1] + math.log(2))
    both = (kernel.backward(gradient, tuple(parts), whole, block, SCALE) for kernel in (FlashKernel(), ProductKernel()))
    torch.testing.assert_close(*both, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [None, 3, 20])
def test_both_backends_attend_to_keys_before_the_queries(window):
    borders = torch.tensor([0, 4, 8, 9], dtype=torch.int32)
    documents = Documents.of(borders, 9, keys_before=7)
    parts = [part.transpose(0, 1) for part in inputs(9, 16)]
    ours = attention._flash(Heads(*parts, SCALE, 0.0, window), documents)
    theirs = attention._sdpa_per_document(Heads(*parts, SCALE, 0.0, window), documents)
    torch.testing.assert_close(ours, theirs)
