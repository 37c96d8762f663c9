"""Names and shapes of the weights that a model has, for finding them in another trainer's checkpoint.

They come from the headers of the model's own safetensors files, which takes no time, or from the architecture that
transformers builds, which knows ties and needs no weights but seconds of imports. No weight is read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpt_dist.model.folder import read_model_config


@dataclass(frozen=True)
class Expected:
    """The weights and buffers that a file of the model holds."""

    names: dict[str, set[str]]
    """Name -> the names under which a checkpoint may hold it, several where weights are tied."""
    shapes: dict[str, tuple[int, ...]]
    """By each of these names."""
    ties_unknown: bool
    """Whether a weight may have names that are not among `names`."""


def expected_by_model(folder: Path) -> Expected:
    """What the architecture of a folder's config.json holds."""
    from cpt_dist.checkpoint.streamed_model import empty_model, stored_names

    model = empty_model(folder)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    return Expected(stored_names(model), shapes, ties_unknown=False)


def expected_by_files(folder: Path) -> Expected | None:
    """What the headers of a folder's safetensors files list.

    None where there are no readable ones, or where their number of tables of the vocabulary is not what the config's
    `tie_word_embeddings` lets expect, since which weights are tied only the architecture knows.
    """
    config = read_model_config(folder)
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    try:
        files = sorted(set(json.loads(index.read_bytes())["weight_map"].values())) if index.is_file() else [single.name]
        shapes = {name: shape for file in files for name, shape in _shapes(folder / file).items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    num_tables = sum(len(shape) == 2 and shape[0] == config.get("vocab_size") for shape in shapes.values())
    tables_wanted: dict[Any, int] = {True: 1, False: 2}
    if num_tables != tables_wanted.get(config.get("tie_word_embeddings")):
        return None
    return Expected({name: {name} for name in shapes}, shapes, ties_unknown=True)


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    with open(path, "rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if length > path.stat().st_size:
            raise ValueError(f"{path} is no safetensors file")
        header = json.loads(handle.read(length))
    return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
