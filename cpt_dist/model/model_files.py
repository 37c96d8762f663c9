"""The small files that make weights a Hugging Face model: config.json, generation config, tokenizer, chat template.

They are copied byte for byte, never saved again through a library, because a re-save changes them (transformers 5
drops the keys that transformers 4 reads, and 4 then silently falls back to RoPE base 10000). Weights are not written
here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cpt_dist.errors import UserError
from cpt_dist.files import atomic_write, write_json
from cpt_dist.model.folder import read_model_config

MODEL_PATTERNS = ("config.json", "generation_config.json")
TOKENIZER_PATTERNS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "chat_template.*",
    "additional_chat_templates/*",
)
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


def copy_model_files(source: str | Path, target: str | Path, tokenizer: str | Path | None = None) -> list[str]:
    """Copy every file but the weights from one model folder to another, byte for byte.

    `tokenizer` is the folder of the tokenizer files, by default `source`. Returns the names copied, sorted. Raises
    UserError where `source` has no config.json or the tokenizer folder no tokenizer.json.
    """
    read_model_config(source)
    tokens = Path(tokenizer or source)
    if not (tokens / "tokenizer.json").exists():
        raise UserError(f"'{tokens}' has no tokenizer.json; a fast tokenizer is needed, save one with save_pretrained")
    copied = []
    for folder, patterns in ((Path(source), MODEL_PATTERNS), (tokens, TOKENIZER_PATTERNS)):
        for path in sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}):
            name = path.relative_to(folder)
            destination = Path(target) / name
            destination.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(destination) as handle:
                handle.write(path.read_bytes())
            copied.append(str(name))
    return sorted(copied)


def write_export_config(folder: str | Path, dtype: str, rope: dict[str, Any] | None = None) -> None:
    """Make the config.json in `folder` say the same to transformers 4 and 5.

    `dtype` is the type of the exported weights, fp32 or bf16; `rope` (as `rope_switch.rope_of` gives it) replaces what
    the file says of RoPE and positions. The element type is written as `dtype` (5) and
    `torch_dtype` (4), RoPE as `rope_parameters` (5) and as `rope_theta` + `rope_scaling` (4). Raises ValueError for
    another dtype, UserError where there is no config.json.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype '{dtype}' is none of {', '.join(DTYPES)}")
    config = read_model_config(folder)
    if rope:
        for key in ("rope_scaling", "rope_theta", "partial_rotary_factor"):
            config.pop(key, None)
        config |= rope
    config.update({"dtype": DTYPES[dtype], "torch_dtype": DTYPES[dtype]}, **both_rope_forms(config))
    write_json(Path(folder) / "config.json", config)


def both_rope_forms(config: dict[str, Any]) -> dict[str, Any]:
    """The keys of a config.json that state its RoPE in the way of transformers 4 and of 5.

    Transformers 5 lets a non-empty `rope_scaling` win over `rope_parameters`, and `rope_parameters` win over a
    top-level `rope_theta`; the same order decides here, and both forms come from that one source. Empty where the
    model has no RoPE, or one for each type of layer, which has no common form in transformers 4.
    """
    rope = dict(config.get("rope_scaling") or config.get("rope_parameters") or {})
    theta = rope.pop("rope_theta", config.get("rope_theta"))
    if theta is None or any(isinstance(value, dict) for value in rope.values()):
        return {}
    rope_type = rope.pop("rope_type", rope.pop("type", "default"))
    rope.pop("type", None)
    partial = rope.pop("partial_rotary_factor", config.get("partial_rotary_factor"))
    scaling = None if rope_type == "default" else {"rope_type": rope_type, **rope}
    shared = {} if partial is None else {"partial_rotary_factor": partial}
    return {
        "rope_theta": theta,
        "rope_scaling": scaling,
        "rope_parameters": {"rope_type": rope_type, **rope, "rope_theta": theta, **shared},
        **shared,
    }
