"""A job on two hosts that share a disk and a cable, and nothing else; the cable is pulled."""

import copy
import os
import sys
import time
from pathlib import Path

import pytest

from tests.helpers import tiny_run
from tests.helpers.two_hosts import TwoHosts

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]
TIMEOUT_SECONDS = 15


@pytest.fixture
def hosts():
    obstacle = TwoHosts.obstacle()
    if obstacle and os.environ.get("CPT_REQUIRE_SLURM"):
        pytest.fail(obstacle)
    if obstacle:
        pytest.skip(obstacle)
    with TwoHosts() as two:
        yield two


@pytest.fixture
def job(base, hosts, tmp_path):
    """Starts the tiny run on both hosts; gives the processes and the files of their output."""
    folder, config = base
    config = copy.deepcopy(config)
    config["run_dir"] = str(tmp_path / "run")
    config["checkpoint"] = {"every_steps": 2}
    config["stages"][0]["tokens"] = str(256 * 60)
    config["engine"]["timeout_seconds"] = TIMEOUT_SECONDS
    configs = tiny_run.write_experiment(folder, config, "two-hosts")
    processes = []

    def start():
        outputs = [tmp_path / f"{name}-{len(processes)}.out" for name in hosts.names]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        started = []
        for index, output in enumerate(outputs):
            words = [str(Path(sys.executable).parent / "torchrun"), "--nnodes=2", f"--node-rank={index}"]
            words += [f"--master-addr={hosts.addresses[0]}", "--master-port=29511", "--nproc-per-node=1"]
            words += [str(tiny_run.ROOT / "launch" / "train.py"), f"--config-dir={configs}", "experiment=two-hosts"]
            started.append(hosts.start(index, words, environment, output))
        processes.extend(started)
        return started, outputs

    yield tmp_path / "run", start
    for index, process in enumerate(processes):
        hosts.switch_off(index % 2)
        process.wait()


def wait_for_step(run_dir, step, processes, outputs):
    end = time.monotonic() + 300
    path = run_dir / "metrics.jsonl"
    while not path.exists() or f'"step": {step}, "stage"' not in path.read_text():
        assert all(process.poll() is None for process in processes), [path.read_text()[-3000:] for path in outputs]
        assert time.monotonic() < end, [path.read_text()[-3000:] for path in outputs]
        time.sleep(0.05)


def test_a_host_that_is_cut_off_is_named_and_the_next_start_goes_on(job, hosts):
    run_dir, start = job
    processes, outputs = start()
    wait_for_step(run_dir, 3, processes, outputs)
    hosts.unplug()
    begin = time.monotonic()
    assert processes[0].wait(timeout=480) != 0
    seconds = time.monotonic() - begin
    said = outputs[0].read_text()
    assert f"rank 1 on beta ({hosts.addresses[1]}) doesn't answer" in said, said[-4000:]
    assert seconds < TIMEOUT_SECONDS + 60
    hosts.switch_off(1)
    processes[1].wait()
    hosts.plug()
    processes, outputs = start()
    assert [process.wait(timeout=480) for process in processes] == [0, 0], outputs[0].read_text()[-4000:]
    (resume,) = tiny_run.read_metrics(run_dir, "resume")
    assert resume["step"] >= 2
    assert [record["step"] for record in tiny_run.read_metrics(run_dir)] == list(range(1, 61))
