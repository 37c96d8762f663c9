"""Tiny random causal language models, saved as transformers saves them."""

from pathlib import Path

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
SLIDING_WINDOW = 6


def save(model_class, config, folder, seed):
    """Save a model with random weights, larger than usual so that a wrong formula shows, and give its folder."""
    torch.manual_seed(seed)
    model = model_class(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    return Path(folder)


def tiny_llama(folder, vocab_size=1001, seed=0, **changes):
    return save(LlamaForCausalLM, LlamaConfig(vocab_size=vocab_size, **SHAPE | changes), folder, seed)


def tiny_qwen2(folder, vocab_size=1001, seed=0, **changes):
    changes = {"tie_word_embeddings": True} | changes
    return save(Qwen2ForCausalLM, Qwen2Config(vocab_size=vocab_size, **SHAPE | changes), folder, seed)


def tiny_qwen3(folder, vocab_size=1001, seed=0, **changes):
    return save(
        Qwen3ForCausalLM, Qwen3Config(vocab_size=vocab_size, **SHAPE | {"head_dim": 16} | changes), folder, seed
    )


def tiny_mistral(folder, vocab_size=1001, seed=0, **changes):
    """With a sliding window that is shorter than the documents of the tests."""
    changes = {"sliding_window": SLIDING_WINDOW} | changes
    return save(MistralForCausalLM, MistralConfig(vocab_size=vocab_size, **SHAPE | changes), folder, seed)


def tiny_gpt2(folder, vocab_size=1001, seed=0, **changes):
    """The odd one: learned positions, tied head, dropout of 0.1, weights as Conv1D."""
    shape = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, "bos_token_id": 0, "eos_token_id": 0}
    return save(GPT2LMHeadModel, GPT2Config(vocab_size=vocab_size, **shape | changes), folder, seed)


FAMILIES = {
    "llama": tiny_llama,
    "qwen2": tiny_qwen2,
    "qwen3": tiny_qwen3,
    "mistral": tiny_mistral,
    "gpt2": tiny_gpt2,
}
