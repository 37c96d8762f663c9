"""One uninterrupted run of each engine and world size, and every resume of them, made once for all tests."""

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import tiny_run

UNINTERRUPTED = {
    "one": (1, {"name": "fsdp"}),
    "fsdp 2": (2, {"name": "fsdp"}),
    "zero 2": (2, {"name": "zero"}),
    "zero 3": (3, {"name": "zero"}),
    "zero0 2": (2, {"name": "zero", "zero_stage": 0}),
    "zero1 2": (2, {"name": "zero", "zero_stage": 1}),
    "zero2 2": (2, {"name": "zero", "zero_stage": 2}),
    "hsdp 4": (4, {"name": "fsdp", "shard_size": 2}),
    "micro-batch 2": (1, {"name": "fsdp", "micro_batch": 2}),
    "micro-batch 4": (1, {"name": "fsdp", "micro_batch": 4}),
    "zero 2 micro-batch 2": (2, {"name": "zero", "micro_batch": 2}),
    "fsdp 2 context 2": (2, {"name": "fsdp", "context_parallel": 2}),
    "zero 2 context 2": (2, {"name": "zero", "context_parallel": 2, "context_parallel_method": "ring"}),
    "hsdp 4 context 2": (4, {"shard_size": 2, "context_parallel": 2, "context_parallel_method": "ulysses"}),
}
BF16 = {
    "bf16 fsdp 2": (2, {"name": "fsdp", "precision": "bf16"}),
    "bf16 zero 2": (2, {"name": "zero", "precision": "bf16"}),
    "bf16 zero1 2": (2, {"name": "zero", "zero_stage": 1, "precision": "bf16"}),
}
WRITERS = ("zero 2", "fsdp 2", "one")
READERS = {
    "zero 2": UNINTERRUPTED["zero 2"],
    "zero 3": UNINTERRUPTED["zero 3"],
    "fsdp 2": UNINTERRUPTED["fsdp 2"],
    "fsdp 4": (4, {"name": "fsdp"}),
    "one": UNINTERRUPTED["one"],
}
FURTHER = [("zero2 2", "one"), ("zero0 2", "fsdp 2"), ("one", "zero1 2"), ("fsdp 2", "zero2 2"), ("one", "zero0 2")]
FURTHER += [("hsdp 4", "zero 3"), ("zero 2", "hsdp 4"), ("hsdp 4", "one")]
FURTHER += [("fsdp 2 context 2", "one"), ("zero 2 context 2", "fsdp 2"), ("one", "zero 2 context 2")]
RESUMES = [(writer, reader) for writer in WRITERS for reader in READERS] + FURTHER
BF16_RESUMES = [
    ("bf16 zero 2", "bf16 fsdp 2"),
    ("bf16 fsdp 2", "bf16 zero1 2"),
    ("bf16 zero1 2", "bf16 zero 2"),
]
ALL = UNINTERRUPTED | BF16
HALF = 10


def run_jobs(folder, jobs):
    """`jobs`: (world size, job) pairs; all of one world size share their processes."""
    for world_size in sorted({size for size, _ in jobs}):
        chosen = [job for size, job in jobs if size == world_size]
        path = Path(folder) / f"jobs-{world_size}.json"
        path.write_text(json.dumps(chosen))
        torchrun(world_size, "tests.helpers.worker", path)


def torchrun(world_size, module, *arguments):
    """Run a module in `world_size` processes."""
    binary = Path(sys.executable).parent / "torchrun"
    words = [str(binary), "--nnodes", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    words += ["--nproc-per-node", str(world_size), "-m", module, *map(str, arguments)]
    done = subprocess.run(
        words,
        cwd=tiny_run.ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=560,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]


class Runs:
    """The folders of all runs."""

    def __init__(self, folder):
        self.folder = folder

    def uninterrupted(self, name):
        return self.folder / f"whole {name}"

    def resumed(self, writer, reader):
        return self.folder / f"{writer} to {reader}"

    def loaded(self, writer, reader):
        return self.folder / f"{writer} to {reader} loaded"

    @staticmethod
    def losses(run_dir):
        return [record["loss"] for record in tiny_run.read_metrics(run_dir)]

    @staticmethod
    def sample_ids(run_dir):
        """Step -> sorted sample ids of all ranks."""
        steps = {}
        for path in run_dir.glob("samples-*.jsonl"):
            for line in path.read_text().splitlines():
                record = json.loads(line)
                steps.setdefault(record["step"], []).extend(record["ids"])
        return {step: sorted(ids) for step, ids in sorted(steps.items())}


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engines")
    base = tiny_run.build(folder)
    base["checkpoint"] = {"every_steps": HALF, "keep_last": 0}
    runs = Runs(folder)

    def job(run_dir, engine, save_loaded=None):
        config = copy.deepcopy(base) | {"run_dir": str(run_dir)}
        config["engine"] = config["engine"] | engine
        return {"config": config, "save_loaded": str(save_loaded) if save_loaded else None}

    jobs = [(size, job(runs.uninterrupted(name), engine)) for name, (size, engine) in ALL.items()]
    run_jobs(folder, jobs)
    jobs = []
    for writer, reader in RESUMES + BF16_RESUMES:
        target = runs.resumed(writer, reader)
        shutil.copytree(runs.uninterrupted(writer), target, ignore=shutil.ignore_patterns("samples-*"))
        shutil.rmtree(target / "checkpoints" / "step-00000020")
        size, engine = (READERS | ALL)[reader]
        jobs.append((size, job(target, engine, runs.loaded(writer, reader))))
    run_jobs(folder, jobs)
    return runs
