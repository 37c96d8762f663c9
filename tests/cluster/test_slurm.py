"""Real jobs on a real Slurm, submitted as a user does."""

import copy
import json
import os
import re
import subprocess
import sys
import time

import pytest

from tests.helpers import tiny_run

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(400)]
LOSS_TOLERANCE = 1e-5


class Submitter:
    """Submits the tiny run, each time with a run directory of its own."""

    def __init__(self, slurm, base):
        self.slurm, (self.folder, self.config) = slurm, base
        self.number = 0

    def experiment(self, folder=None, **changes):
        """Words of the experiment with whole top-level groups replaced."""
        self.number += 1
        name = f"slurm-{os.urandom(3).hex()}"
        self.run_dir = self.folder / (folder or name)
        config = copy.deepcopy(self.config) | changes | {"run_dir": str(self.run_dir)}
        configs = tiny_run.write_experiment(self.folder, config, name)
        return [f"--config-dir={configs}", f"experiment={name}", "cluster=slurm"]

    def submit(self, *words):
        """Numbers of the submitted jobs."""
        command = [sys.executable, str(tiny_run.ROOT / "launch" / "submit.py"), *words]
        environment = self.slurm.environment | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, cwd=tiny_run.ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr
        return re.findall(r"^job (\d+):", done.stdout, re.MULTILINE)

    def ends_well(self, number, seconds=150):
        job = self.slurm.wait(number, seconds=seconds)
        assert job["JobState"] == "COMPLETED", self.output(job)
        return job

    def output(self, job):
        """All that a job and its ranks said."""
        files = sorted(path for path in self.run_dir.rglob("logs/**/*") if path.is_file())
        return f"{job}\n" + "\n".join(f"== {path}\n{path.read_text()[-3000:]}" for path in files)

    def losses(self, run_dir=None):
        return [record["loss"] for record in tiny_run.read_metrics(run_dir or self.run_dir)]

    def history(self):
        lines = (self.run_dir / "slurm" / "history.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def wait_for_step(self, number, step, seconds=90):
        end = time.monotonic() + seconds
        path = self.run_dir / "metrics.jsonl"
        while not path.exists() or f'"step": {step}, "stage"' not in path.read_text():
            job = self.slurm.job(number)
            assert job["JobState"] in ("PENDING", "RUNNING", "COMPLETING"), self.output(job)
            assert time.monotonic() < end, self.output(job)
            time.sleep(0.1)


@pytest.fixture
def submitter(slurm, base):
    return Submitter(slurm, base)


@pytest.fixture(scope="module")
def reference(base):
    """Losses of the run on one process without Slurm."""
    folder, config = base
    config = copy.deepcopy(config) | {"run_dir": str(folder / "reference")}
    configs = tiny_run.write_experiment(folder, config, "reference")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    words = [f"--config-dir={configs}", "experiment=reference"]
    tiny_run.launch("python", 1, "train.py", *words, env=environment)
    return [record["loss"] for record in tiny_run.read_metrics(folder / "reference")]


@pytest.mark.parametrize(
    ("launcher", "engine", "folder"),
    [("torchrun", "fsdp", 'it\'s "50%" a # run'), ("deepspeed", "zero3", None), ("srun", "fsdp", None)],
)
def test_two_nodes_train_to_the_end(submitter, reference, launcher, engine, folder):
    words = submitter.experiment(folder)
    (number,) = submitter.submit(*words, f"engine={engine}", "nodes=2", f"launcher={launcher}", "time=5")
    submitter.ends_well(number)
    assert submitter.losses() == pytest.approx(reference, rel=LOSS_TOLERANCE)
    outputs = sorted(path.name for path in submitter.run_dir.glob(f"logs/{number}.0/rank-*.out"))
    assert outputs == ["rank-00000.out", "rank-00001.out"]
