"""A tiny random model and byte-level tokenizers for the tests of evaluation."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = "the patient has acute pain of lower back and was given a naïve dose of café syrup 日本 today .".split()  # noqa: SIM905


def text_of(generator, num_words: int) -> str:
    """Random words of a small vocabulary, with characters of one to three bytes."""
    return " ".join(WORDS[int(i)] for i in generator.integers(0, len(WORDS), num_words))


def tiny_tokenizer(vocab_size: int = 300, bos: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>", "<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def tiny_model(seed: int = 0, vocab_size: int = 300) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).eval()


def save_tokenizer(folder: Path, tokenizer: Tokenizer) -> Path:
    """Write a tokenizer's files as transformers does."""
    names = {"eos_token": "<|endoftext|>", "bos_token": "<s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    return folder


def save_model(folder: Path, seed: int = 0, bos: bool = False) -> Path:
    """Write a model folder as transformers does."""
    tiny_model(seed).save_pretrained(folder)
    return save_tokenizer(folder, tiny_tokenizer(bos=bos))
