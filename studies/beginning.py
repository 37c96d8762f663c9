"""What the medical study begins with: a tokenizer of the general text, and a Llama with random weights."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

SEPARATOR = "<|endoftext|>"


def write_beginning(folder: Path, corpora: Sequence[Path], vocabulary: int, hidden: int, layers: int) -> None:
    """Write a model folder: byte-level BPE of `vocabulary` tokens trained on the texts, and first weights."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=8 * hidden // 3 // 16 * 16,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 32,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[SEPARATOR], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_texts(corpora), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": SEPARATOR}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def _texts(corpora: Sequence[Path]) -> Iterator[str]:
    for path in corpora:
        with open(path, encoding="utf-8") as lines:
            yield from (json.loads(line)["text"] for line in lines)
