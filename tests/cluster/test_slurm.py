"""Real jobs on a real Slurm, submitted as a user does."""

import copy
import json
import os
import re
import subprocess
import sys
import time

import pytest

from cpt_dist.cluster.submission import code_fingerprint
from tests.helpers import tiny_run

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]
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
            command, cwd=tiny_run.ROOT, env=environment, capture_output=True, text=True, timeout=180, check=False
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr
        assert (self.run_dir / "code" / code_fingerprint()).is_dir(), "other code than that of these tests"
        return re.findall(r"^job (\d+):", done.stdout, re.MULTILINE)

    def ends_well(self, number, seconds=480):
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

    def wait_for_step(self, number, step, seconds=300):
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


SLOWLY = """\
import os
import time
from pathlib import Path

from cpt_dist.run_directory import RunDirectory

append = RunDirectory.append_metrics
stop = Path(os.environ.get("CPT_START_DIR", ".")) / "stop"
seconds = [*{seconds}, *[0] * 100][int(os.environ.get("SLURM_RESTART_COUNT", 0))]


def slowly(self, record):
    append(self, record)
    end = time.monotonic() + seconds
    while record["kind"] == "step" and time.monotonic() < end and not stop.exists():
        time.sleep(0.1)


RunDirectory.append_metrics = slowly
"""


@pytest.fixture(scope="module")
def slow_steps(tmp_path_factory):
    """A word that makes, from outside, every step of a job's first, second … start take so many seconds longer.

    Until the start is asked to stop.
    """

    def word(*seconds):
        folder = tmp_path_factory.mktemp("slowly")
        (folder / "sitecustomize.py").write_text(SLOWLY.format(seconds=seconds))
        return f"+cluster.environment.PYTHONPATH={folder}"

    return word


@pytest.fixture(scope="module", autouse=True)
def job_with_a_limit(slurm, base, slow_steps):
    """A job whose first two starts can't be done within its time limit; it waits while the other tests compute.

    Slurm looks every 30 s, so the signal comes 80 to 110 s after a start, by when the first has made at most 10 steps
    and the second 3; each makes two more, to see it and to agree.
    """
    submitter = Submitter(slurm, base)
    limit = ["time=2", "cluster.signal_margin_seconds=10", slow_steps(12.0, 40.0)]
    (number,) = submitter.submit(*submitter.experiment(), *limit, "nodes=2", "launcher=srun", "engine=fsdp")
    return submitter, number


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
    [("torchrun", "fsdp", 'it\'s "50%" a # run'), ("deepspeed", "zero3", None)],
)
def test_two_nodes_train_to_the_end(submitter, reference, launcher, engine, folder):
    words = submitter.experiment(folder)
    (number,) = submitter.submit(*words, f"engine={engine}", "nodes=2", f"launcher={launcher}")
    submitter.ends_well(number)
    assert submitter.losses() == pytest.approx(reference, rel=LOSS_TOLERANCE)
    outputs = sorted(path.name for path in submitter.run_dir.glob(f"logs/{number}.0/rank-*.out"))
    assert outputs == ["rank-00000.out", "rank-00001.out"]


def test_a_signal_and_a_drained_node_move_the_job_to_another_node(submitter, reference, slow_steps, slurm):
    words = submitter.experiment()
    (number,) = submitter.submit(*words, slow_steps(2.0), "cluster.ranks_per_node=2", "launcher=torchrun")
    submitter.wait_for_step(number, 3)
    node = slurm.job(number)["BatchHost"]
    slurm.run("scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=test")
    try:
        slurm.run("scancel", "--signal=USR1", "--batch", number)
        job = submitter.ends_well(number)
    finally:
        slurm.run("scontrol", "update", f"NodeName={node}", "State=RESUME", check=False)
    assert job["BatchHost"] != node
    assert job["Restarts"] == "1"
    assert [(start["code"], start["reason"]) for start in submitter.history()] == [(75, "signal"), (0, "finished")]
    assert submitter.losses() == pytest.approx(reference, rel=LOSS_TOLERANCE)


def test_after_a_lost_rank_its_node_is_excluded_and_the_run_goes_on(submitter, reference, slow_steps):
    words = submitter.experiment(checkpoint={"every_steps": 2})
    policy = ["cluster.backoff_seconds=1", "cluster.node_failures=1", "nodes=1", "cluster.ranks_per_node=1"]
    (number,) = submitter.submit(*words, *policy, slow_steps(2.0), "launcher=srun", "nodes=2")
    submitter.wait_for_step(number, 4)
    beat = json.loads((submitter.run_dir / "health" / "rank-00001.json").read_text())
    os.kill(beat["pid"], 9)
    job = submitter.slurm.wait(number, states=("PENDING",), seconds=300)
    (failure,) = submitter.history()
    assert (failure["code"], failure["blamed"]) == (1, [beat["node"]])
    time.sleep(1)
    job = submitter.slurm.job(number)
    assert job["ExcNodeList"] == beat["node"]
    said = (submitter.run_dir / "logs" / f"{number}.0" / "rank-00000.out").read_text()
    assert re.search(rf"error \(rank 0\): step \d+, .*: rank 1 on {beat['node']} \(.*\) doesn't answer", said)
    # Two nodes without that one are more than this cluster has.
    submitter.slurm.run("scontrol", "update", f"JobId={number}", "ExcNodeList=")
    submitter.ends_well(number)
    assert submitter.losses() == pytest.approx(reference, rel=LOSS_TOLERANCE)


def test_a_sweep_is_an_array_job(submitter, slurm):
    words = submitter.experiment()
    (number,) = submitter.submit(*words, "sweep.seed=0,1", "launcher=srun")
    end = time.monotonic() + 480
    while slurm.run("squeue", "-h", "-j", number, check=False).strip():
        assert time.monotonic() < end
        time.sleep(0.5)
    folders = sorted(path for path in submitter.run_dir.glob("task-*"))
    assert [folder.name for folder in folders] == ["task-000-seed-0", "task-001-seed-1"]
    curves = [submitter.losses(folder) for folder in folders]
    assert len(curves[0]) == len(curves[1]) == 20
    assert curves[0] != curves[1]


def test_jobs_follow_each_other(submitter, slurm):
    stage = submitter.config["stages"][0]
    stages = [stage | {"name": name, "tokens": "1024"} for name in ("first", "second")]
    words = submitter.experiment(stages=stages)
    numbers = submitter.submit(*words, "chain=[stages,consolidate]", "launcher=srun")
    assert len(numbers) == 3
    for number in numbers:
        submitter.ends_well(number)
    steps = tiny_run.read_metrics(submitter.run_dir)
    assert [step["stage"] for step in steps] == ["first"] * 4 + ["second"] * 4
    assert [record["step"] for record in tiny_run.read_metrics(submitter.run_dir, "resume")] == [4]
    assert (submitter.run_dir / "model" / "config.json").exists()


def test_a_job_that_slurm_refuses_is_one_line(submitter):
    words = submitter.experiment()
    command = [sys.executable, str(tiny_run.ROOT / "launch" / "submit.py"), *words, "partition=nowhere"]
    done = subprocess.run(
        command, env=submitter.slurm.environment, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 2
    assert "invalid partition specified: nowhere" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_job_that_meets_its_time_limit_is_requeued_until_it_is_done(job_with_a_limit, reference):
    submitter, number = job_with_a_limit
    submitter.ends_well(number)
    *stopped, last = submitter.history()
    assert {(start["code"], start["reason"]) for start in stopped} <= {(75, "signal"), (75, "time limit")}
    assert len(stopped) >= 2
    assert (last["code"], last["reason"]) == (0, "finished")
    assert submitter.losses() == pytest.approx(reference, rel=LOSS_TOLERANCE)
