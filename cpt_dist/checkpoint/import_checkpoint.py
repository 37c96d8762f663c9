"""Weights out of the checkpoints of other trainers, into a Hugging Face model folder.

It reads what DeepSpeed itself writes (ZeRO stages 1 to 3) and what PyTorch's distributed checkpoint writes (FSDP of
HF Trainer and Accelerate, torchtitan, this framework), without running anything that those files name, and checks
names and shapes against the model's own config. Optimizer state is not taken over.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import xxhash

from cpt_dist.checkpoint.dcp_index import dcp_sources
from cpt_dist.checkpoint.deepspeed_folder import checkpoint_folder, deepspeed_sources, num_steps
from cpt_dist.checkpoint.element_types import WRITTEN
from cpt_dist.checkpoint.expected_weights import Expected, expected_by_files, expected_by_model
from cpt_dist.checkpoint.export_weights import DtypePolicy, export_weights
from cpt_dist.checkpoint.model_behind import ModelBehind
from cpt_dist.checkpoint.model_folder_writer import folder_in_the_making
from cpt_dist.checkpoint.tensor_source import Files, TensorSource
from cpt_dist.config import CptConfig, parse_quantity
from cpt_dist.errors import UserError
from cpt_dist.model.folder import read_model_config
from cpt_dist.model.model_files import copy_model_files, write_export_config

_NOT_MODEL = {"optimizer", "optimizers", "optim", "lr_scheduler", "train_state", "dataloader", "scheduler", "rng_state"}
"""First words of names of what lies beside a model in checkpoints of other trainers."""


class OtherModelError(UserError):
    """The names or shapes in a checkpoint are not those of the model."""


@dataclass(frozen=True)
class Found:
    """A checkpoint of another trainer, of which no tensor is read yet."""

    folder: Path
    kind: str
    sources: dict[str, TensorSource]
    num_steps: int | None
    """Optimizer steps behind it, where it says so."""


@dataclass(frozen=True)
class Imported:
    """What an import wrote."""

    folder: Path
    found: Found
    num_tensors: int
    num_bytes: int
    kept_files: list[str]
    peak_bytes: int
    weights_seconds: float
    check_seconds: float
    """Time after that until the logits were computed."""


def find_checkpoint(folder: Path, expected: Expected) -> Found:
    """The checkpoint in `folder` or in a folder directly below it that holds the weights of the expected model.

    Its sources have the model's names. Raises UserError that says what is missing or of another shape.
    """
    if not folder.is_dir():
        raise UserError(f"from: there is no folder '{folder}'; give the folder of a checkpoint")
    inner = checkpoint_folder(folder)
    if inner is not None:
        return Found(inner, "DeepSpeed", match_names(deepspeed_sources(inner), expected, inner), num_steps(inner))
    places = [path for path in (folder, *sorted(folder.iterdir())) if (path / ".metadata").is_file()]
    problems: list[str] = []
    kinds = set()
    for place in places:
        try:
            return Found(place, "torch.distributed.checkpoint", match_names(dcp_sources(place), expected, place), None)
        except UserError as error:
            problems += error.problems
            kinds.add(type(error))
    if problems:
        raise (OtherModelError if OtherModelError in kinds else UserError)(problems)
    raise UserError(
        f"from: {folder} is no checkpoint of DeepSpeed (…_model_states.pt) or of torch.distributed.checkpoint "
        "(.metadata); give the folder that has them"
    )


def match_names(sources: dict[str, TensorSource], expected: Expected, folder: Path) -> dict[str, TensorSource]:
    """The sources that are the model's, by its own names, whatever prefix they have in the checkpoint.

    Of tied weights, one is kept. Raises OtherModelError where a weight is missing, unknown, of another
    shape, or where tied ones differ.
    """
    wanted, shapes = expected.names, expected.shapes
    prefix = _prefix(set(sources), wanted)
    missing = sorted(name for name, aliases in wanted.items() if not {prefix + a for a in aliases} & set(sources))
    known = {prefix + alias for aliases in wanted.values() for alias in aliases}
    own = {name for name in sources if name.startswith(prefix) and (prefix or name.split(".")[0] not in _NOT_MODEL)}
    if expected.ties_unknown:
        # Another name of bytes that are taken anyway.
        places = {sources[name].pieces for name in known & own}
        known |= {name for name in own if sources[name].pieces in places}
    problems = [f"{folder} is of another model: it lacks '{name}'" for name in missing]
    problems += [
        f"{folder} is of another model: it has '{name}', which the config doesn't" for name in sorted(own - known)
    ]
    found: dict[str, TensorSource] = {}
    for name, aliases in wanted.items():
        held = [sources[prefix + alias] for alias in sorted(aliases) if prefix + alias in sources]
        for source in held:
            if source.shape != shapes[name]:
                problems.append(
                    f"{folder} is of another model: '{source.name}' has shape {list(source.shape)}, "
                    f"the config wants {list(shapes[name])}"
                )
        if held:
            found[name] = held[0].renamed(name)
    if problems:
        raise OtherModelError(problems[:5] + ([f"and {len(problems) - 5} more"] if len(problems) > 5 else []))
    for aliases in wanted.values():
        _check_tied([sources[prefix + alias] for alias in sorted(aliases) if prefix + alias in sources], folder)
    return found


def _prefix(names: set[str], wanted: dict[str, set[str]]) -> str:
    """What stands before the model's names: of the prefixes under which most of them are found, the shortest."""
    candidates = {""}
    for anchor in sorted(max(wanted.values(), key=lambda aliases: len(max(aliases, key=len)))):
        candidates |= {name.removesuffix(anchor) for name in names if name.endswith("." + anchor)}
    candidates = {prefix for prefix in candidates if prefix.split(".")[0] not in _NOT_MODEL}

    def num_found(prefix: str) -> int:
        return sum(any(prefix + alias in names for alias in aliases) for aliases in wanted.values())

    return min(candidates, key=lambda prefix: (-num_found(prefix), len(prefix), prefix))


def _check_tied(held: list[TensorSource], folder: Path) -> None:
    if len({source.pieces for source in held}) > 1 and len({_checksum(source) for source in held}) > 1:
        names = " and ".join(f"'{source.name}'" for source in held)
        raise OtherModelError(
            f"{folder}: {names} differ, but the config ties them; set tie_word_embeddings: false in it"
        )


def _checksum(source: TensorSource) -> str:
    digest = xxhash.xxh3_64()
    with Files() as files:
        for block in source.blocks(files):
            digest.update(block.data)
    return digest.hexdigest()


def import_checkpoint(
    source: Path,
    model_folder: Path,
    out: Path,
    dtype_name: str,
    max_shard_bytes: int,
    workers: int = 1,
    fp32_names: tuple[str, ...] = (),
    check_logits: bool = True,
) -> Imported:
    """Write the weights of the checkpoint in `source` as a Hugging Face model to `out`, whole or not at all.

    `model_folder` has the config.json and the tokenizer of the model, for example those of the base; `check_logits` is
    whether the written model is built and run once. Raises UserError where the checkpoint isn't that model's, is
    damaged, or gives logits that aren't finite.
    """
    found = _find_for(source, model_folder)
    files = sorted({piece.path for tensor in found.sources.values() for piece in tensor.pieces})
    identity = [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in files]
    policy = DtypePolicy(WRITTEN[dtype_name], fp32_names)
    with folder_in_the_making(out, "out") as part, ModelBehind(part, check_logits) as model:

        def small_files() -> None:
            copy_model_files(model_folder, part)
            write_export_config(part, dtype_name)
            model.begin()

        started = time.perf_counter()
        written = export_weights(
            found.sources, part, policy, max_shard_bytes, workers, identity, when_started=small_files
        )
        weights_written = time.perf_counter()
        if not model.has_finite_logits():
            raise UserError(
                f"{found.folder}: the model's logits are not finite; {out} was not written, take another step"
            )
        computed = time.perf_counter()
    num_bytes = sum(spec.num_bytes for spec in written.specs)
    return Imported(
        folder=out,
        found=found,
        num_tensors=len(written.specs),
        num_bytes=num_bytes,
        kept_files=written.kept_files,
        peak_bytes=written.peak_bytes,
        weights_seconds=weights_written - started,
        check_seconds=computed - weights_written,
    )


def _find_for(source: Path, model_folder: Path) -> Found:
    """The checkpoint in `source` of the model in `model_folder`.

    The names in the folder's own files of weights are tried first; where there are none, or where they don't fit,
    the architecture itself is asked, which takes some seconds of imports.
    """
    read_model_config(model_folder)
    by_files = expected_by_files(model_folder)
    if by_files is not None:
        try:
            return find_checkpoint(source, by_files)
        except OtherModelError:
            pass
    return find_checkpoint(source, expected_by_model(model_folder))


def import_run(config: CptConfig) -> Imported:
    """Import the checkpoint that `config.import_checkpoint` names and print what was and what wasn't taken over."""
    wanted = config.import_checkpoint
    model = Path(wanted.model)
    folder = model.parent if model.name == "config.json" else model
    max_bytes = parse_quantity(wanted.max_shard_size, "import_checkpoint.max_shard_size")
    names = tuple(wanted.fp32_names)
    done = import_checkpoint(
        Path(wanted.source),
        folder,
        Path(wanted.out),
        wanted.dtype,
        max_bytes,
        wanted.workers,
        names,
        wanted.check_logits,
    )
    if done.kept_files:
        print(f"went on after an interruption: {len(done.kept_files)} finished files were found whole and kept")
    steps = f", step {done.found.num_steps}" if done.found.num_steps is not None else ""
    print(
        f"{done.folder}: {done.num_tensors} tensors, {done.num_bytes / 1e6:.1f} MB of {wanted.dtype} in "
        f"{done.weights_seconds:.1f} s from {done.found.folder} ({done.found.kind}{steps}), each read back and equal; "
        f"peak memory while writing {done.peak_bytes / 1e6:.0f} MB"
    )
    if wanted.check_logits:
        print(f"loaded with transformers in {done.check_seconds:.1f} s more; its logits are finite")
    else:
        print("import_checkpoint.check_logits=false: the model was not loaded")
    print(
        "taken over: all weights and buffers. Not taken over: Adam's moments, learning rate, random numbers and the "
        f"position in the data; go on with a new run and a warm-up: launch/train.py model.path={done.folder} …"
    )
    return done
