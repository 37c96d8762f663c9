"""What a model folder's small files say, without loading a tensor or importing torch.

A launch script asks here first, so that a wrong path or a sequence beyond the model's positions is reported at once.
Whether the weights fit the architecture is not known here; `cpt_dist.model.load` finds that out.
"""

from __future__ import annotations

import json
import struct
from math import prod
from pathlib import Path
from typing import Any

from cpt_dist.errors import UserError
from cpt_dist.files import file_checksum, fingerprint

POSITION_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length")


def read_model_config(folder: str | Path) -> dict[str, Any]:
    """The config.json of a model folder. Raises UserError where there is none or it is no JSON object."""
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"model.path: there is no folder '{path}'; give the folder of a Hugging Face model")
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"model.path: '{path}' has no config.json; give the folder of a Hugging Face model") from None
    except ValueError as error:
        raise UserError(f"model.path: '{path}/config.json' is no JSON ({error}); fetch the model again") from None
    if not isinstance(config, dict):
        raise UserError(f"model.path: '{path}/config.json' holds no JSON object; fetch the model again")
    return config


def check_model_folder(folder: str | Path) -> dict[str, Any]:
    """Its config.json, after a check that every file of weights is there, as long as its header says.

    Raises UserError that names what is not.
    """
    path = Path(folder)
    config = read_model_config(path)
    index = path / "model.safetensors.index.json"
    files = ["model.safetensors"]
    if index.exists():
        try:
            files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError):
            raise UserError(f"model.path: '{index}' lists no weights; fetch the model again") from None
        missing = [name for name in files if not (path / name).exists()]
        if missing:
            raise UserError(
                f"model.path: '{path}' lacks {', '.join(missing)}, named by its index; fetch the model again"
            )
    elif not (path / "model.safetensors").exists():
        other = sorted(p.name for pattern in ("*.bin", "*.pt", "*.gguf") for p in path.glob(pattern))
        found = f" (only {', '.join(other)}); save the model as safetensors" if other else "; fetch the model again"
        raise UserError(f"model.path: '{path}' has no model.safetensors{found}")
    problems = [problem for name in files if (problem := _cut_off(path / name))]
    if problems:
        raise UserError(f"model.path: {problem}; fetch the model again" for problem in problems)
    return config


def _cut_off(path: Path) -> str | None:
    """Why a safetensors file can't be whole, by its size and header (8 bytes of length, then JSON with offsets)."""
    size = path.stat().st_size
    with open(path, "rb") as handle:
        start = handle.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if 8 + length > size:
            return f"'{path}' is no safetensors file, or was cut off in its header ({size} bytes)"
        try:
            tensors = json.loads(handle.read(length))
            ends = [int(entry["data_offsets"][1]) for name, entry in tensors.items() if name != "__metadata__"]
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            return f"'{path}' is no safetensors file (its header is damaged)"
    whole = 8 + length + max(ends, default=0)
    return f"'{path}' has {size} bytes, its header says {whole}" if size != whole else None


def max_positions(config: dict[str, Any]) -> int | None:
    """Tokens of the longest sequence that a config.json declares, or None where it declares no limit."""
    declared = [config[key] for key in POSITION_KEYS if isinstance(config.get(key), int)]
    return declared[0] if declared else None


def num_weights(folder: str | Path) -> int:
    """Weights in a model folder's safetensors, by their headers. Raises UserError where one is damaged."""
    total = 0
    for path in sorted(Path(folder).glob("*.safetensors")):
        try:
            with path.open("rb") as handle:
                header = json.loads(handle.read(int.from_bytes(handle.read(8), "little")))
            total += sum(prod(one["shape"]) for name, one in header.items() if name != "__metadata__")
        except (OSError, OverflowError, MemoryError, ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"model.path: '{path}' has no header of safetensors; fetch the model again") from None
    return total


def model_fingerprint(folder: str | Path) -> str:
    """xxh3-128 (hex) of a model folder's files of weights and its tokenizer.json, by name; reads all of them."""
    files = [*sorted(Path(folder).glob("*.safetensors")), Path(folder) / "tokenizer.json"]
    return fingerprint({path.name: file_checksum(path) for path in files if path.is_file()})
