"""A disk that fails under a run: the same line on every rank, at the next step, and what was whole stays."""

import copy
import subprocess

import pytest

from cpt_dist.checkpoint.store import CheckpointStore
from tests.engine.conftest import run_jobs
from tests.helpers import tiny_run

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(1200)]

DISKS = {
    "full for metrics": {"step": 8, "how": "full"},
    "full for the ledger": {"step": 8, "how": "full"},
    "full for the start": {"step": 0, "how": "full"},
    "read-only": {"step": 8, "how": "read-only"},
}


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """A file system of 32 MB; None where this user can't mount one."""
    folder = tmp_path_factory.mktemp("disk")
    words = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(folder)]
    mounted = subprocess.run(words, capture_output=True, check=False).returncode == 0
    yield folder if mounted else None
    if mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, disk):
    folder = tmp_path_factory.mktemp("lost")
    base = tiny_run.build(folder)
    base["checkpoint"] = {"every_steps": 5, "keep_last": 1}

    def job(run_dir, every_steps=1, **faults):
        config = copy.deepcopy(base) | {"run_dir": str(run_dir)}
        config["logging"] |= {"every_steps": every_steps}
        return 2, {"config": config, **faults}

    jobs = [job(folder / "save", lost_save={"rank": 1, "step": 10}, pause=0.2)]
    for name, lost in DISKS.items() if disk else ():
        faults = {"9": {"rank": 1, "divisor": 1e-300}} if "ledger" in name else {}
        jobs.append(job(disk / name, 100 if faults else 1, disk=lost | {"folder": str(disk)}, faults=faults))
    if disk:
        jobs.append(job(disk / "full for metrics"))
    run_jobs(folder, jobs)
    return folder


def lines(runs, name):
    """The one line that each rank ended with."""
    (first,), (second,) = ((runs / f"{name}.error-{rank}").read_text().splitlines() for rank in range(2))
    assert first == second
    return first


def steps_recorded(run_dir):
    return [record["step"] for record in tiny_run.read_metrics(run_dir)]


def test_a_save_behind_training_that_fails_on_one_rank_ends_both_at_the_next_step(runs):
    assert "checkpoint of step 10 was not written" in lines(runs, "save")
    assert "rank 1: [Errno 5] Input/output error" in lines(runs, "save")
    assert steps_recorded(runs / "save")[-1] in (11, 12)
    store = CheckpointStore(runs / "save" / "checkpoints")
    assert (store.steps(), store.newest_whole("refuse")) == ([5], 5)


@pytest.mark.parametrize(
    ("name", "file", "said"),
    [
        ("full for metrics", "metrics.jsonl", "No space left on device"),
        ("full for the ledger", "ledger.jsonl", "No space left on device"),
        ("full for the start", "starts/0001.yaml", "No space left on device"),
        ("read-only", "metrics.jsonl", "Read-only file system"),
    ],
)
def test_a_disk_that_takes_no_record_ends_the_run_in_one_line_that_names_the_file(runs, disk, name, file, said):
    if disk is None:
        pytest.skip("this user can't mount a small file system")
    line = lines(runs, name)
    assert said in line
    assert f"{disk / name / file}'; make room or give write access" in line
    store = CheckpointStore(disk / name / "checkpoints")
    assert store.newest_whole("refuse") == {"full for the start": None, "full for metrics": 20}.get(name, 5)


def test_with_room_again_the_run_goes_on(runs, disk):
    if disk is None:
        pytest.skip("this user can't mount a small file system")
    assert steps_recorded(disk / "full for metrics")[-15:] == list(range(6, 21))
