"""The weights in a checkpoint folder that DeepSpeed itself wrote, for ZeRO stages 1 to 3.

The fp32 master weights lie in flat partitions, one file a rank, in the order of `param_shapes`: stage 3 cuts each
parameter into equal slices, one a rank, the last padded; stages 1 and 2 cut the row of all parameters of a group.
Values stay in their files until they are read. The layout is that of DeepSpeed's zero_to_fp32.py, whose unpickling is
not taken over.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from cpt_dist.checkpoint.tensor_source import Piece, TensorSource
from cpt_dist.checkpoint.torch_file import StoredTensor, read_torch_file
from cpt_dist.errors import UserError

_OPTIMIZER_FILE = re.compile(r"(?:bf16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt")
_MODEL_FILE = re.compile(r"(?:zero_pp_rank_(\d+)_)?mp_rank_(\d+)_model_states\.pt")

Flat = tuple[StoredTensor, ...]
"""One rank's flat partitions that follow each other as one vector."""


def checkpoint_folder(folder: Path) -> Path | None:
    """The folder with the .pt files: `folder`, or the tag in it that its file `latest` names; None where there is none.

    Raises UserError where `latest` names a folder that isn't there.
    """
    if any(_MODEL_FILE.fullmatch(path.name) for path in folder.iterdir()):
        return folder
    latest = folder / "latest"
    tag = latest.read_text(encoding="utf-8").strip() if latest.is_file() else None
    if tag is None:
        return None
    if Path(tag).name != tag or not (folder / tag).is_dir():
        raise UserError(f"{latest} names '{tag}', which is no folder of {folder}; give the folder with the .pt files")
    return checkpoint_folder(folder / tag)


def deepspeed_sources(folder: Path) -> dict[str, TensorSource]:
    """Name -> every weight and buffer of the checkpoint in `folder`, the weights in fp32 where ZeRO kept them so.

    Raises UserError where files are missing, disagree, or come from another form of parallelism.
    """
    try:
        return _found(folder)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        said = " ".join(f"{type(error).__name__} {error}".split())
        raise UserError(f"{folder}: its .pt files are not laid out as ZeRO's ({said}); write them again") from error


def _found(folder: Path) -> dict[str, TensorSource]:
    models, optimizers = _files(folder, _MODEL_FILE), _files(folder, _OPTIMIZER_FILE)
    first = read_torch_file(models[0])
    if first.get("param_shapes") is None or not optimizers:
        raise UserError(f"{folder} has no partitions of ZeRO; export the weights with save_16bit_model")
    states = [read_torch_file(path)["optimizer_state_dict"] for path in optimizers]
    stage, count = int(states[0]["zero_stage"]), states[0]["partition_count"]
    world_size = max(count) if isinstance(count, list | tuple) else int(count)
    if len(optimizers) != world_size:
        raise UserError(f"{folder} has {len(optimizers)} files of the optimizer, of {world_size} ranks; fetch the rest")
    if any(key.startswith(("autoep", "ds_autoep")) and first[key] for key in first if isinstance(key, str)):
        raise UserError(
            f"{folder} has expert partitions (AutoEP); convert it with DeepSpeed's ds_to_universal.py first"
        )
    found = _buffers(first)
    if stage == 3:
        if len(models) != world_size:
            raise UserError(f"{folder} has {len(models)} files of the model, of {world_size} ranks; fetch the rest")
        found |= _frozen_slices([first, *(read_torch_file(path) for path in models[1:])])
        found |= _slices(first["param_shapes"], [_flat(state["fp32_flat_groups"]) for state in states], folder)
    else:
        found |= _frozen_whole(first)
        found |= _partitions(first["param_shapes"], states, folder)
    for alias, name in (first.get("shared_params") or {}).items():
        if name in found:
            found[alias] = found[name].renamed(alias)
    return found


def num_steps(folder: Path) -> int | None:
    """The optimizer steps that the checkpoint says it has made."""
    steps = read_torch_file(_files(folder, _MODEL_FILE)[0]).get("global_steps")
    return steps if isinstance(steps, int) else None


def _files(folder: Path, pattern: re.Pattern[str]) -> list[Path]:
    found: dict[int, Path] = {}
    for path in folder.iterdir():
        if match := pattern.fullmatch(path.name):
            if int(match[2]) != 0:
                raise UserError(f"{path}: weights split by tensor parallelism are not read; merge them with DeepSpeed")
            found[int(match[1] or 0)] = path
    missing = sorted(set(range(len(found))) - set(found))
    if missing:
        raise UserError(f"{folder}: the file of rank {missing[0]} is missing; fetch it ({pattern.pattern})")
    return [found[rank] for rank in sorted(found)]


def _buffers(model: dict[str, Any]) -> dict[str, TensorSource]:
    wanted = set(model.get("buffer_names") or ())
    module = model.get("module") or {}
    return {name: _whole(name, stored) for name, stored in module.items() if name in wanted}


def _whole(name: str, stored: StoredTensor) -> TensorSource:
    piece = Piece(stored.path, stored.offset, (0,), (stored.numel,))
    return TensorSource(name, stored.shape, stored.dtype, (piece,), grid=(stored.numel,))


def _frozen_whole(model: dict[str, Any]) -> dict[str, TensorSource]:
    return {name: _whole(name, stored) for name, stored in (model.get("frozen_param_fragments") or {}).items()}


def _frozen_slices(models: list[dict[str, Any]]) -> dict[str, TensorSource]:
    found = {}
    for name, shape in (models[0].get("frozen_param_shapes") or {}).items():
        flats: list[Flat] = [(model["frozen_param_fragments"][name],) for model in models]
        found[name] = _sliced(name, tuple(shape), flats, 0)
    return found


def _flat(groups: Any) -> Flat:
    return tuple(groups) if isinstance(groups, list | tuple) else (groups,)


def _cut(flat: Flat, start: int, stop: int, at: int) -> list[Piece]:
    """Elements [start, stop) of the vector `flat` as pieces that begin at element `at` of a flattened tensor."""
    pieces, begin = [], 0
    for stored in flat:
        low, high = max(start, begin), min(stop, begin + stored.numel)
        if low < high:
            offset = stored.offset + (low - begin) * stored.dtype.itemsize
            pieces.append(Piece(stored.path, offset, (at + low - start,), (high - low,)))
        begin += stored.numel
    return pieces


def _sliced(name: str, shape: tuple[int, ...], flats: list[Flat], position: int) -> TensorSource:
    """A parameter of which each rank has ceil(numel / ranks) elements at `position` of its vector."""
    numel = math.prod(shape)
    width = math.ceil(numel / len(flats))
    pieces: list[Piece] = []
    for rank, flat in enumerate(flats):
        valid = min(width, numel - rank * width)
        if valid > 0:
            pieces += _cut(flat, position, position + valid, rank * width)
    return TensorSource(name, shape, flats[0][0].dtype, tuple(pieces), grid=(numel,))


def _slices(groups: list[dict[str, Any]], flats: list[Flat], folder: Path) -> dict[str, TensorSource]:
    found, position = {}, 0
    for name, shape in ((name, tuple(shape)) for group in groups for name, shape in group.items()):
        found[name] = _sliced(name, shape, flats, position)
        position += math.ceil(math.prod(shape) / len(flats))
    for rank, flat in enumerate(flats):
        have = sum(stored.numel for stored in flat)
        if have != position:
            raise UserError(f"{folder}: rank {rank} has {have} elements, its parameters need {position}; save it again")
    return found


def _partitions(groups: list[dict[str, Any]], states: list[Any], folder: Path) -> dict[str, TensorSource]:
    found = {}
    all_paddings = states[0].get("param_alignment_paddings")
    for number, shapes in enumerate(groups):
        vector: Flat = tuple(state["single_partition_of_fp32_groups"][number] for state in states)
        paddings = all_paddings[number] if all_paddings is not None else [0] * len(shapes)
        position = 0
        for (name, size), padding in zip(shapes.items(), paddings, strict=True):
            shape = tuple(size)
            numel = math.prod(shape)
            pieces = tuple(_cut(vector, position, position + numel, 0))
            found[name] = TensorSource(name, shape, vector[0].dtype, pieces, grid=(numel,))
            position += numel + padding
        have, align = sum(stored.numel for stored in vector), 2 * len(states)
        # DeepSpeed pads the end of a group to a multiple of twice the ranks.
        if math.ceil(position / align) != math.ceil(have / align):
            raise UserError(
                f"{folder}: group {number} has {have} elements, its parameters need {position}; save it again"
            )
    return found
