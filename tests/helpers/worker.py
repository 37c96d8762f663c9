"""Several training jobs one after the other in the same processes, which saves the start of each.

Started by torchrun with a JSON file: a list of {"config": whole configuration, "save_loaded": folder or null, "pause":
seconds before each step}. A job resumes by itself where its run directory has a checkpoint. With `save_loaded` the
state right after the load is written there as a checkpoint. Each rank appends for each step to `samples-<rank>.jsonl`:
its sample ids, the checksum of each micro-batch's tokens, labels and positions, the documents in it, and the RoPE that
the model has (the bytes of each `inv_freq`, the factor of cos and sin). `faults`
is step -> {"rank", "divisor" or "nll"}: that rank's loss is divided by another number, or its recorded nll multiplied,
at every try of the step. `lost_save` is {"rank", "step"}: that rank's disk fails in the save of that step. `disk` is
{"step", "folder", "how"}: from that step on (0: from the start) the disk under `folder` is "full" or "read-only", for
this job. With `stop_at` the last rank is asked to stop in that step. The lines of an error that ends a job are written
beside the JSON file, to `<name of the run directory>.error-<rank>`.
"""

import contextlib
import errno
import json
import os
import subprocess
import sys
import time
from concurrent import futures
from pathlib import Path

import torch
import xxhash
from omegaconf import OmegaConf

from cpt_dist.checkpoint import commit
from cpt_dist.checkpoint.store import CheckpointStore
from cpt_dist.cluster.stop import SIGNAL
from cpt_dist.config import CptConfig, EngineConfig
from cpt_dist.engine import distributed
from cpt_dist.errors import UserError
from cpt_dist.training.run import Run
from cpt_dist.training.setup import set_up
from cpt_dist.training.trainer import fit


def checksum(batch):
    columns = (batch.input_ids, batch.labels, batch.position_ids)
    return xxhash.xxh3_64_hexdigest(torch.cat(columns).numpy().tobytes())


def rope(model):
    """Of each rotary embedding: its frequencies, byte by byte, and the factor of cos and sin."""
    modules = [module for module in model.hf.modules() if hasattr(module, "inv_freq")]
    return [[one.inv_freq.view(torch.uint8).numpy().tobytes().hex(), one.attention_scaling] for one in modules]


def record_samples(run, pause, job=0):
    steps_of = Run.steps_of
    if not run.engine.context.now.counts:
        return  # it reads the rows of another rank
    path = run.directory.path / f"samples-{run.world.rank}.jsonl"

    def recording(index):
        for batches in steps_of(run, index):
            time.sleep(pause)
            with_rows = [batch for batch in batches.micro_batches if len(batch.sample_ids)]
            record = {
                "step": run.step + 1,
                "ids": [int(n) for batch in with_rows for n in batch.sample_ids],
                "world_size": run.world.size,
                "job": job,
                "rope": rope(run.engine.model),
                "checksums": [checksum(batch) for batch in with_rows],
                "documents": [one.numpy().tobytes().hex() for b in with_rows if not b.is_filler for one in b.doc_ids],
                "without_tokens": sum(batch.is_filler for batch in with_rows),
            }
            with open(path, "a") as handle:
                handle.write(json.dumps(record) + "\n")
            yield batches

    run.steps_of = recording


def inject(run, faults):
    forward_backward = run.engine.forward_backward

    def faulty(batch, divisor, last, *distillation):
        fault = faults.get(str(run.step + 1), {})
        if fault.get("rank") != run.world.rank:
            return forward_backward(batch, divisor, last, *distillation)
        nll = forward_backward(batch, divisor * float(fault.get("divisor", 1)), last, *distillation)
        return nll * float(fault.get("nll", 1))

    run.engine.forward_backward = faulty


@contextlib.contextmanager
def lost_save(fault):
    """The disk of a rank fails while it lists its files of a save."""
    entries = commit.ChecksummedWriter.entries

    def failing(writer, root, rank):
        if fault and rank == fault["rank"] and root.name == f".step-{fault['step']:08d}.tmp":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(root))
        return entries(writer, root, rank)

    commit.ChecksummedWriter.entries = failing
    yield
    commit.ChecksummedWriter.entries = entries


def lose_disk(disk):
    if disk["how"] == "read-only":
        # It is refused while anything there is open for writing, such as a heartbeat.
        deadline = time.monotonic() + 30
        while subprocess.run(["mount", "-o", "remount,ro", disk["folder"]], check=False).returncode:
            assert time.monotonic() < deadline, "the disk stays busy"
            time.sleep(0.05)
        return
    with contextlib.suppress(OSError), open(Path(disk["folder"]) / "filler", "wb", buffering=0) as filler:
        while True:
            filler.write(bytes(1 << 12))


def lose_disk_after_the_save(run, disk):
    """Once the checkpoint of a step before is written, however slow the machine is."""
    if run.saver._pending is not None:
        futures.wait([run.saver._pending[0]])
    lose_disk(disk)


def give_disk_back(disk):
    if disk["how"] == "read-only":
        subprocess.run(["mount", "-o", "remount,rw", disk["folder"]], check=True)
    (Path(disk["folder"]) / "filler").unlink(missing_ok=True)


def at_step(run, step, action):
    """Call `action` on this rank right before it begins with `step`."""
    steps_of = run.steps_of

    def watched(index):
        for batches in steps_of(index):
            if run.step + 1 == step:
                action()
            yield batches

    run.steps_of = watched


def work(job, world):
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(CptConfig), job["config"]))
    disk = job.get("disk", {})
    if disk.get("step") == 0 and world.is_first:
        lose_disk(disk)
    world.barrier()
    run = set_up(config, world)
    if job.get("save_loaded"):
        tensors = run.engine.state_tensors()
        CheckpointStore(Path(job["save_loaded"])).save(run.step, tensors, {}, None)
    if not disk:
        record_samples(run, job.get("pause", 0.0))
    elif world.is_first:
        at_step(run, disk["step"], lambda: lose_disk_after_the_save(run, disk))
    if job.get("stop_at") and world.rank == world.size - 1:
        at_step(run, job["stop_at"], lambda: setattr(run, "stop_reason", SIGNAL))
    inject(run, job.get("faults", {}))
    fit(run)


def main():
    world = distributed.start(EngineConfig(threads=1, timeout_seconds=60))
    for job in json.loads(Path(sys.argv[1]).read_text()):
        with lost_save(job.get("lost_save")):
            try:
                work(job, world)
            except UserError as error:
                name = f"{Path(job['config']['run_dir']).name}.error-{world.rank}"
                Path(sys.argv[1]).with_name(name).write_text("\n".join(error.problems))
        world.barrier()
        if job.get("disk") and world.is_first:
            give_disk_back(job["disk"])
    distributed.stop()


if __name__ == "__main__":
    main()
