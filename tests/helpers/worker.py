"""Several training jobs one after the other in the same processes, which saves the start of each.

Started by torchrun with a JSON file: a list of {"config": whole configuration, "save_loaded": folder or null, "pause":
seconds before each step}. A job resumes by itself where its run directory has a checkpoint. With `save_loaded` the
state right after the load is written there as a checkpoint. Each rank appends for each step to `samples-<rank>.jsonl`:
its sample ids, the checksum of each micro-batch's tokens, labels and positions, and the documents in it. `faults`
is step -> {"rank", "divisor" or "nll"}: that rank's loss is divided by another number, or its recorded nll multiplied,
at every try of the step. The line of an error that ends a job is written to `error.txt` of the run directory.
"""

import json
import sys
import time
from pathlib import Path

import torch
import xxhash
from omegaconf import OmegaConf

from cpt_dist.checkpoint.store import CheckpointStore
from cpt_dist.config import CptConfig, EngineConfig
from cpt_dist.engine import distributed
from cpt_dist.errors import UserError
from cpt_dist.training.run import Run
from cpt_dist.training.setup import set_up
from cpt_dist.training.trainer import fit


def checksum(batch):
    columns = (batch.input_ids, batch.labels, batch.position_ids)
    return xxhash.xxh3_64_hexdigest(torch.cat(columns).numpy().tobytes())


def record_samples(run, pause):
    steps_of = Run.steps_of
    path = run.directory.path / f"samples-{run.world.rank}.jsonl"

    def recording(index):
        for batches in steps_of(run, index):
            time.sleep(pause)
            with_rows = [batch for batch in batches.micro_batches if len(batch.sample_ids)]
            record = {
                "step": run.step + 1,
                "ids": [int(n) for batch in with_rows for n in batch.sample_ids],
                "world_size": run.world.size,
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

    def faulty(batch, divisor, last):
        fault = faults.get(str(run.step + 1), {})
        if fault.get("rank") != run.world.rank:
            return forward_backward(batch, divisor, last)
        nll = forward_backward(batch, divisor * float(fault.get("divisor", 1)), last)
        return nll * float(fault.get("nll", 1))

    run.engine.forward_backward = faulty


def main():
    world = distributed.start(EngineConfig(threads=1, timeout_seconds=60))
    for job in json.loads(Path(sys.argv[1]).read_text()):
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(CptConfig), job["config"]))
        run = set_up(config, world)
        if job.get("save_loaded"):
            tensors = run.engine.state_tensors()
            CheckpointStore(Path(job["save_loaded"])).save(run.step, tensors, {}, None)
        record_samples(run, job.get("pause", 0.0))
        inject(run, job.get("faults", {}))
        try:
            fit(run)
        except UserError as error:
            (run.directory.path / "error.txt").write_text(str(error))
        del run
    distributed.stop()


if __name__ == "__main__":
    main()
