"""From a run's sharded checkpoint to a Hugging Face model folder, checked.

Tensors stream from the store into safetensors files by several processes, whatever engine and world size wrote them.
At the end the model that transformers builds from the result computes logits, which are compared with those that the
training model recorded in the checkpoint; a difference removes the result. It reads the run directory alone.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from cpt_dist.checkpoint.catalogue import Catalogue
from cpt_dist.checkpoint.dcp_index import dcp_sources
from cpt_dist.checkpoint.element_types import WRITTEN
from cpt_dist.checkpoint.export_weights import DtypePolicy, export_weights
from cpt_dist.checkpoint.model_behind import ModelBehind
from cpt_dist.checkpoint.model_folder_writer import folder_in_the_making
from cpt_dist.checkpoint.read_check import ReadCheck
from cpt_dist.checkpoint.tensor_source import TensorSource
from cpt_dist.config import CptConfig, parse_quantity
from cpt_dist.errors import UserError
from cpt_dist.files import file_checksum
from cpt_dist.model.model_files import copy_model_files, write_export_config
from cpt_dist.run_directory import RunDirectory

PREFIX = "model."
LOGIT_TOLERANCE = {"fp32": 1e-5, "bf16": 5e-2}
"""Largest difference of logits, relative to their largest magnitude, after a write in this type."""


@dataclass(frozen=True)
class Consolidated:
    """What a consolidation did."""

    folder: Path
    step: int
    num_tensors: int
    num_bytes: int
    largest_tensor_bytes: int
    """Of the largest tensor as it is stored."""
    kept_files: list[str]
    """Files that an interrupted consolidation had finished."""
    streaming_peak_bytes: int
    """Most memory of this process and its workers together while the weights were written, torch included."""
    weights_seconds: float
    """Time until all weights were written, on the disk and compared with the checkpoint."""
    check_seconds: float
    """Time after that until the logits were compared."""
    logit_difference: float | None
    """Largest difference of logits relative to their largest magnitude; None where they were not compared."""


def consolidate(
    store: Catalogue,
    step: int,
    model_files: Path,
    out: Path,
    dtype_name: str,
    max_shard_bytes: int,
    workers: int = 1,
    fp32_names: tuple[str, ...] = (),
    check_logits: bool = True,
) -> Consolidated:
    """Write the model of checkpoint `step` to `out` in `dtype_name` (fp32 or bf16), whole or not at all.

    `model_files` holds the base model's config.json and tokenizer files; tensors that match one of the patterns
    `fp32_names` are written in fp32. Memory doesn't grow with the model, except by its largest tensor in the check at
    the end; `check_logits` is whether there is one. Raises UserError for a damaged checkpoint, an `out` that holds
    something else, or logits that differ.
    """
    folder = store.path(step)
    check = ReadCheck(folder, store.manifest(step))
    check.files()
    sources = model_sources(folder)
    policy = DtypePolicy(WRITTEN[dtype_name], fp32_names)
    identity = [str(step), file_checksum(folder / "manifest.json")]
    rope = store.trainer(step).get("rope")
    with folder_in_the_making(out, "consolidate.out") as part, ModelBehind(part, check_logits) as model:

        def small_files() -> None:
            copy_model_files(model_files, part)
            write_export_config(part, dtype_name, rope)
            model.begin()

        started = time.perf_counter()
        written = export_weights(sources, part, policy, max_shard_bytes, workers, identity, check.reading, small_files)
        weights_written = time.perf_counter()
        difference = model.difference_from_probe(folder)
        if difference is not None and not difference <= LOGIT_TOLERANCE[dtype_name]:
            raise UserError(
                f"the consolidated model's logits differ from the training model's by {difference:.2e} relative "
                f"(allowed {LOGIT_TOLERANCE[dtype_name]:.0e}); {out} was not written"
            )
        compared = time.perf_counter()
    return Consolidated(
        folder=out,
        step=step,
        num_tensors=len(written.specs),
        num_bytes=sum(spec.num_bytes for spec in written.specs),
        largest_tensor_bytes=max(source.num_bytes for source in sources.values()),
        kept_files=written.kept_files,
        streaming_peak_bytes=written.peak_bytes,
        weights_seconds=weights_written - started,
        check_seconds=compared - weights_written,
        logit_difference=difference,
    )


def model_sources(checkpoint: Path) -> dict[str, TensorSource]:
    """The model's tensors in the folder of a checkpoint by the names of the Hugging Face model."""
    return {
        name.removeprefix(PREFIX): source.renamed(name.removeprefix(PREFIX))
        for name, source in dcp_sources(checkpoint / "state").items()
        if name.startswith(PREFIX)
    }


def consolidate_run(config: CptConfig) -> Consolidated:
    """Consolidate the checkpoint that `config.consolidate` names and print what was written."""
    run = RunDirectory(config.run_dir)
    wanted = config.consolidate
    if not run.model_files.is_dir():
        raise UserError(f"run_dir: {run.path} is no run directory (it has no model_files); give the folder of a run")
    store = Catalogue(run.checkpoints)
    step = store.step_of(wanted.step)
    max_bytes = parse_quantity(wanted.max_shard_size, "consolidate.max_shard_size")
    done = consolidate(
        store,
        step,
        run.model_files,
        Path(wanted.out),
        wanted.dtype,
        max_bytes,
        wanted.workers,
        tuple(wanted.fp32_names),
        wanted.check_logits,
    )
    if done.kept_files:
        print(f"went on after an interruption: {len(done.kept_files)} finished files were found whole and kept")
    print(
        f"{done.folder}: step {done.step}, {done.num_tensors} tensors, {done.num_bytes / 1e6:.1f} MB of "
        f"{wanted.dtype} in {done.weights_seconds:.2f} s, each read back and equal to the checkpoint's; peak memory "
        f"while writing {done.streaming_peak_bytes / 1e6:.0f} MB "
        f"(largest tensor {done.largest_tensor_bytes / 1e6:.1f} MB)"
    )
    if done.logit_difference is not None:
        print(
            f"loaded with transformers in {done.check_seconds:.1f} s more; logits equal the training model's to "
            f"{done.logit_difference:.1e} relative"
        )
    elif wanted.check_logits:
        print("the checkpoint has no probe: logits were not compared")
    else:
        print("consolidate.check_logits=false: logits were not compared")
    return done
