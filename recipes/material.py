"""What the recipes train and score on: documents, one token a byte, and a tiny Llama.

The default text is the source code of Python's standard library as it is on this machine; a Python of another version
has other text, so numbers differ a little between machines. Nothing is trained here.
"""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import xxhash
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from cpt_dist.corpus.inputs import find_inputs
from cpt_dist.corpus.read import read_records

END = "<|end|>"
HELD_OUT_EVERY = 10


def read_documents(text: Sequence[str], max_bytes: int, min_bytes: int) -> tuple[list[str], list[str]]:
    """(training, held-out) documents of at least `min_bytes`, about `max_bytes` in all, in the order of their hash.

    `text` are files as `data.sources.NAME.raw` takes them; empty: the standard library. Every tenth is held out.
    """
    if text:
        files, _ = find_inputs(text, "--text")
        found = [record.text for item in files for record in read_records(item) if record.text]
    else:
        library = Path(sysconfig.get_paths()["stdlib"])
        paths = [path for path in library.rglob("*.py") if not {"test", "tests", "site-packages"} & set(path.parts)]
        found = [path.read_text(encoding="utf-8", errors="ignore") for path in sorted(paths)]
    unique = {xxhash.xxh3_64_hexdigest(one.encode()): one for one in found if len(one.encode()) >= min_bytes}
    chosen: list[str] = []
    used = 0
    for key in sorted(unique):
        chosen.append(unique[key])
        used += len(unique[key].encode())
        if used >= max_bytes:
            break
    if len(chosen) < 2 * HELD_OUT_EVERY:
        raise SystemExit(f"only {len(chosen)} documents have {min_bytes} bytes; give more text: --text FILE …")
    return [one for index, one in enumerate(chosen) if index % HELD_OUT_EVERY], chosen[::HELD_OUT_EVERY]


def split_blocks(documents: Sequence[str], min_bytes: int, max_bytes: int) -> list[str]:
    """Parts of the documents between two empty lines in a row, of so many bytes."""
    blocks = [block.strip() for one in documents for block in one.split("\n\n\n")]
    return [block for block in blocks if min_bytes <= len(block.encode()) <= max_bytes]


def tokens_of(text: str) -> np.ndarray:
    """uint16 [bytes + 1]: a token for each byte, 1 + its value, and the end token 0."""
    return np.append(np.frombuffer(text.encode(), dtype=np.uint8).astype(np.uint16) + 1, np.uint16(0))


def write_tokens(path: Path, documents: Sequence[np.ndarray], joined: int = 1) -> Path:
    """Tokens as datatrove keeps them: `path` (.ds) and its index. `joined` documents in a row count as one."""
    ends = np.cumsum([len(one) for one in documents])
    ends = ends[np.minimum(np.arange(joined - 1, len(ends) + joined - 1, joined), len(ends) - 1)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(np.concatenate(documents).astype("<u2").tobytes())
    Path(f"{path}.index").write_bytes(ends.astype("<u8").tobytes())
    return path


def write_tokenizer(folder: Path) -> None:
    """A tokenizer that gives `tokens_of`."""
    order = pre_tokenizers.ByteLevel.alphabet()
    shown = _characters_of_bytes()
    assert set(shown) == set(order)
    vocabulary = {END: 0} | {character: value + 1 for value, character in enumerate(shown)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END, special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def _characters_of_bytes() -> list[str]:
    """The character by which byte-level BPE shows each byte (GPT-2's table: printable ones stand for themselves)."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    rest = iter(range(256, 512))
    return [chr(value) if value in printable else chr(next(rest)) for value in range(256)]


def write_model(folder: Path, seed: int, positions: int, theta: float, hidden: int, layers: int) -> Path:
    """A Llama with random weights and heads of 16 dimensions."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 16,
        num_key_value_heads=hidden // 16,
        max_position_embeddings=positions,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    write_tokenizer(folder)
    return folder
