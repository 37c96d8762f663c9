"""From a run's sharded checkpoint to a Hugging Face model folder, checked.

Tensors stream from the store into safetensors files, one in memory at a time, whatever engine and world size wrote
them. At the end the result is loaded the way any user would load it, and its logits are compared with those that the
training model recorded in the checkpoint; a difference removes the result. It reads the run directory alone.
"""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cpt_dist.checkpoint.dcp import SafeReader
from cpt_dist.checkpoint.safetensors_stream import TensorSpec, split_into_files, write_stream
from cpt_dist.checkpoint.store import CheckpointStore, Probe
from cpt_dist.config import CptConfig, parse_quantity
from cpt_dist.errors import UserError
from cpt_dist.files import sync_folder, write_json
from cpt_dist.model.model_files import copy_model_files, write_export_config
from cpt_dist.run_directory import RunDirectory

PREFIX = "model."
LOGIT_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-2}
"""Largest difference of logits, relative to their largest magnitude, after a write in this type."""


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Consolidated:
    """What a consolidation did."""

    folder: Path
    step: int
    num_tensors: int
    num_bytes: int
    largest_tensor_bytes: int
    streaming_peak_bytes: int
    """Most memory resident in this process until the weights were written, the interpreter and torch included."""
    logit_difference: float | None
    """Largest difference of logits relative to their largest magnitude; None where the checkpoint has no probe."""


def resolve_step(store: CheckpointStore, wanted: str) -> int:
    """The step that `wanted` ("latest" or a number) names. Raises UserError where it doesn't exist."""
    steps = store.steps()
    if wanted == "latest" and steps:
        return steps[-1]
    if wanted.isdigit() and int(wanted) in steps:
        return int(wanted)
    raise UserError(f"consolidate.step: no checkpoint '{wanted}' in {store.folder}; there are: {steps or 'none'}")


def consolidate(
    store: CheckpointStore, step: int, model_files: Path, out: Path, dtype_name: str, max_shard_bytes: int
) -> Consolidated:
    """Write the model of checkpoint `step` to `out` in `dtype_name` (fp32 or bf16), whole or not at all.

    `model_files` holds the base model's config.json and tokenizer files. Memory holds one tensor at a time; the check
    at the end loads the model. Raises UserError for a damaged checkpoint, an `out` that holds something else, or
    logits that differ.
    """
    dtype = DTYPES[dtype_name]
    store.verify(step)
    if out.exists() and any(out.iterdir()) and not (out / "config.json").is_file():
        raise UserError(f"consolidate.out: {out} holds something that is no model; give another folder")
    temporary = out.with_name(f".{out.name}.tmp.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        specs = _write_weights(SafeReader(store.path(step) / "state"), temporary, dtype, max_shard_bytes)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        copy_model_files(model_files, temporary)
        write_export_config(temporary, dtype_name, store.trainer(step).get("rope"))
        probe = store.probe(step)
        difference = logit_difference(temporary, probe, dtype) if probe is not None else None
        if difference is not None and not difference <= LOGIT_TOLERANCE[dtype]:
            raise UserError(
                f"the consolidated model's logits differ from the training model's by {difference:.2e} relative "
                f"(allowed {LOGIT_TOLERANCE[dtype]:.0e}); {out} was not written"
            )
        _replace_folder(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sizes = [spec.num_bytes for spec in specs]
    return Consolidated(out, step, len(specs), sum(sizes), max(sizes), peak, difference)


def _write_weights(reader: SafeReader, folder: Path, dtype: torch.dtype, max_shard_bytes: int) -> list[TensorSpec]:
    shapes = {name: shape for name, shape in reader.tensor_shapes().items() if name.startswith(PREFIX)}
    specs = [TensorSpec(name.removeprefix(PREFIX), tuple(shape), dtype) for name, shape in sorted(shapes.items())]
    files = split_into_files(specs, max_shard_bytes)

    def stream(part: list[TensorSpec]) -> Iterator[torch.Tensor]:
        for spec in part:
            yield reader.tensor(PREFIX + spec.name).to(dtype)

    if len(files) == 1:
        write_stream(folder / "model.safetensors", files[0], stream(files[0]))
        return specs
    weight_map: dict[str, str] = {}
    for number, part in enumerate(files, start=1):
        name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        write_stream(folder / name, part, stream(part))
        weight_map |= {spec.name: name for spec in part}
    total = sum(spec.num_bytes for spec in specs)
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})
    return specs


def logit_difference(folder: Path, probe: Probe, dtype: torch.dtype) -> float:
    """Largest difference between the logits of the model in `folder` and the probe's, relative to the largest of these.

    The model is loaded with plain `AutoModelForCausalLM.from_pretrained` in `dtype` and runs in fp32, so that the
    difference is that of the weights. Raises UserError where weights are missing or unexpected.
    """
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, local_files_only=True, output_loading_info=True
    )
    model, info = loaded
    wrong = {kind: sorted(info[kind]) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[kind]}
    if wrong:
        raise UserError(f"the consolidated model doesn't load whole: {wrong}")
    with torch.no_grad():
        logits = model.float().eval()(input_ids=probe.input_ids[None], use_cache=False).logits[0].float()
    scale = probe.logits.abs().max().clamp_min(1e-12)
    return float((logits - probe.logits).abs().max() / scale)


def _replace_folder(new: Path, target: Path) -> None:
    for path in new.iterdir():
        with open(path, "rb") as handle:
            os.fsync(handle.fileno())
    sync_folder(new)
    old = target.with_name(f".{target.name}.old.{os.getpid()}")
    if target.exists():
        os.replace(target, old)
    os.replace(new, target)
    sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def consolidate_run(config: CptConfig) -> Consolidated:
    """Consolidate the checkpoint that `config.consolidate` names and print what was written."""
    run = RunDirectory(config.run_dir)
    wanted = config.consolidate
    if not run.model_files.is_dir():
        raise UserError(f"run_dir: {run.path} is no run directory (it has no model_files); give the folder of a run")
    store = CheckpointStore(run.checkpoints)
    step = resolve_step(store, wanted.step)
    max_bytes = parse_quantity(wanted.max_shard_size, "consolidate.max_shard_size")
    done = consolidate(store, step, run.model_files, Path(wanted.out), wanted.dtype, max_bytes)
    print(
        f"{done.folder}: step {done.step}, {done.num_tensors} tensors, {done.num_bytes / 1e6:.1f} MB of "
        f"{wanted.dtype}; peak memory while writing {done.streaming_peak_bytes / 1e6:.0f} MB "
        f"(largest tensor {done.largest_tensor_bytes / 1e6:.1f} MB)"
    )
    if done.logit_difference is None:
        print("the checkpoint has no probe: logits were not compared")
    else:
        print(f"loaded with transformers; logits equal the training model's to {done.logit_difference:.1e} relative")
    return done
