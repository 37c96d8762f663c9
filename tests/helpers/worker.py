"""Several training jobs one after the other in the same processes, which saves the start of each.

Started by torchrun with a JSON file: a list of {"config": whole configuration, "save_loaded": folder or null}. A job
resumes by itself where its run directory has a checkpoint. With `save_loaded` the state right after the load is
written there as a checkpoint. Each rank appends the sample ids of each step to `samples-<rank>.jsonl`.
"""

import json
import sys
from pathlib import Path

from omegaconf import OmegaConf

from cpt_dist.checkpoint.store import CheckpointStore
from cpt_dist.config import CptConfig, EngineConfig
from cpt_dist.engine import distributed
from cpt_dist.training.run import Run
from cpt_dist.training.setup import set_up
from cpt_dist.training.trainer import fit


def record_samples(run):
    steps_of = Run.steps_of
    path = run.directory.path / f"samples-{run.world.rank}.jsonl"

    def recording(index):
        for batches in steps_of(run, index):
            ids = [int(n) for batch in batches.micro_batches for n in batch.sample_ids]
            with open(path, "a") as handle:
                handle.write(json.dumps({"step": run.step + 1, "ids": ids}) + "\n")
            yield batches

    run.steps_of = recording


def main():
    world = distributed.start(EngineConfig(threads=1, timeout_seconds=60))
    for job in json.loads(Path(sys.argv[1]).read_text()):
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(CptConfig), job["config"]))
        run = set_up(config, world)
        if job.get("save_loaded"):
            tensors = run.engine.state_tensors()
            CheckpointStore(Path(job["save_loaded"])).save(run.step, tensors, {}, None)
        record_samples(run)
        fit(run)
        del run
    distributed.stop()


if __name__ == "__main__":
    main()
