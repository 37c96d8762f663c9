"""Floating point operations of a training step, for the utilisation of the hardware.

It counts what the mathematics needs, not what ran: recomputed activations and the optimizer are left out, so that
activation checkpointing shows as lower utilisation (PaLM, arXiv 2204.02311, appendix B).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def num_matmul_parameters(model: nn.Module, head: nn.Linear, config: Any) -> float:
    """Weights that multiply each token: all matrices but embeddings, the head once, of experts those in use.

    The head counts even where it is tied to the embedding: the look-up costs nothing, the product does.
    """
    lookups = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    active = getattr(config, "num_experts_per_tok", None)
    total = 0.0
    for parameter in (p for p in model.parameters() if id(p) not in lookups and p is not head.weight):
        shape = whole_shape(parameter)
        if len(shape) == 3 and active:  # [experts, …]
            total += whole_numel(parameter) * min(1.0, active / shape[0])
        elif len(shape) >= 2:
            total += whole_numel(parameter)
    return total + whole_numel(head.weight)


def flops_per_token(num_matmul: float, config: Any, seq_len: int) -> float:
    """Operations of forward and backward for a token of documents of `seq_len` tokens.

    6 * N for the matrices, and for attention 12 * heads * head_dim * context in each layer (PaLM, appendix B), where
    context is the mean number of tokens that a token sees: (seq_len + 1) / 2 under a causal mask, less in a window.
    """
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    contexts = (mean_context(seq_len, window) for window in windows(config))
    return 6 * num_matmul + 12 * heads * head_dim * sum(contexts)


def windows(config: Any) -> list[int | None]:
    """The sliding window of each layer, None where it sees the whole document."""
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None) or [None] * config.num_hidden_layers
    return [None if kind == "full_attention" else window for kind in types]


def mean_context(seq_len: int, window: int | None) -> float:
    """Mean number of tokens, itself included, that a token of a causal document of `seq_len` tokens attends to."""
    reach = min(seq_len, window or seq_len)
    return (reach * (reach + 1) / 2 + (seq_len - reach) * reach) / seq_len


def whole_shape(parameter: Tensor) -> tuple[int, ...]:
    """The shape of a parameter, also while DeepSpeed has partitioned it and left an empty placeholder."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def whole_numel(parameter: Tensor) -> int:
    """The elements of a parameter over all ranks."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))
