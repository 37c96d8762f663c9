"""A run that is killed twice and goes on with other numbers of processes reads what an uninterrupted one reads.

Through a change of shares, a take-down, a change of engine and a stage of another length. What counts of a step that
was made twice is its last making.
"""

import copy
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cpt_dist.data.ledger_entry import LedgerEntry, read_ledger, write_ledger
from cpt_dist.data.shards import Source
from cpt_dist.data.take_down import TakeDown
from tests.helpers import tiny_run

pytestmark = [pytest.mark.e2e, pytest.mark.distributed]

SEED = 20261122
UNKNOWN = "00" * 16
CHANGE = LedgerEntry(48, {"domain": 0.5, "general": 0.5}, "a change of shares in the middle")
"""From step 13 of the first stage's 16 on; a step of it has 4 samples, one of the second stage 8."""


def configuration(folder, config, run_dir, **changes):
    config = copy.deepcopy(config)
    config["run_dir"] = str(folder / run_dir)
    shape = {"batch_tokens": "256", "mixture": {"domain": 0.7, "general": 0.3}}
    config["stages"] = [
        {"name": "main", "tokens": "4096", "seq_len": 64, **shape},
        {"name": "short", "tokens": "3072", "seq_len": 32, **shape},
    ]
    config["checkpoint"] = {"every_steps": 2}
    config["engine"] |= changes.pop("engine", {})
    config["data"] |= changes
    return config


def start(folder, processes, config, pause):
    path = folder / "jobs.json"
    path.write_text(json.dumps([{"config": config, "pause": pause}]))
    words = [str(Path(sys.executable).parent / "torchrun"), "--nnodes", "1", "--rdzv-backend", "c10d"]
    words += ["--rdzv-endpoint", "localhost:0", "--nproc-per-node", str(processes), "-m", "tests.helpers.worker"]
    output = open(folder / "output.txt", "w")  # noqa: SIM115 (the process writes to it)
    return subprocess.Popen(
        [*words, str(path)],
        cwd=tiny_run.ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def finish(folder, processes, config):
    process = start(folder, processes, config, 0.0)
    assert process.wait(timeout=560) == 0, (folder / "output.txt").read_text()[-6000:]
    return (folder / "output.txt").read_text()


def kill_after(folder, processes, config, step):
    """Start a job and kill every process of it, with signal 9, once `step` steps are done."""
    process = start(folder, processes, config, 0.1)
    end = time.monotonic() + 400
    while not any(record["step"] >= step for record in steps(config["run_dir"])):
        assert process.poll() is None, (folder / "output.txt").read_text()[-6000:]
        assert time.monotonic() < end
        time.sleep(0.02)
    children = psutil.Process(process.pid).children(recursive=True)
    for victim in [psutil.Process(process.pid), *children]:
        victim.kill()
    process.wait()
    psutil.wait_procs(children)
    return (folder / "output.txt").read_text()


def steps(run_dir):
    path = Path(run_dir) / "metrics.jsonl"
    lines = path.read_text().rpartition("\n")[0].splitlines() if path.exists() else []
    return [record for record in map(json.loads, lines) if record["kind"] == "step"]


def as_trained(run_dir):
    """For each step of all ranks: sample -> checksum of its row, the documents, and the rows without a token."""
    records = [json.loads(line) for path in sorted(Path(run_dir).glob("samples-*.jsonl")) for line in path.open()]
    order = [2, 3, 1]  # the numbers of processes, in the order in which the jobs ran
    last = {}
    for record in records:
        last[record["step"]] = max(last.get(record["step"], -1), order.index(record["world_size"]))
    made = {step: ({}, set(), [0]) for step in last}
    for record in records:
        if order.index(record["world_size"]) == last[record["step"]]:
            rows, documents, empty = made[record["step"]]
            rows |= dict(zip(record["ids"], record["checksums"], strict=True))
            documents |= set(record["documents"])
            empty[0] += record["without_tokens"]
    return [made[step] for step in sorted(made)]


def ids_of(folder, name):
    source = Source.open(folder / "shards" / name)
    return [one.tobytes() for shard in range(len(source.shard_tokens)) for one in source.doc_ids(shard)]


@pytest.mark.parametrize("seed", [SEED])
def test_2_then_3_then_1_processes_with_kill_9_train_on_what_an_uninterrupted_run_trains_on(tmp_path, seed):
    config = tiny_run.build(tmp_path)
    draw = random.Random(seed)
    first_kill, second_kill = draw.randint(3, 8), draw.randint(13, 20)
    print(f"seed {seed}: killed after steps {first_kill} and {second_kill}")
    # All of one source, so that whole rows, micro-batches and steps are left without a token.
    listed = ids_of(tmp_path, "general") + ids_of(tmp_path, "domain")[::9]
    (tmp_path / "list.txt").write_text("".join(f"{one.hex()}\n" for one in listed) + f"{UNKNOWN}  # in no source\n")
    (tmp_path / "run").mkdir()
    write_ledger(tmp_path / "run" / "ledger.jsonl", [CHANGE])

    kill_after(tmp_path, 2, configuration(tmp_path, config, "run"), first_kill)
    zero = configuration(tmp_path, config, "run", take_down=str(tmp_path / "list.txt"), engine={"name": "zero"})
    said = kill_after(tmp_path, 3, zero, second_kill)
    assert f"data.take_down: 1 of {len(listed) + 1} document(s) are in no source of this run" in said
    (tmp_path / "list.txt").write_text(f"{UNKNOWN}\n")  # a list that has shrunk brings nothing back
    said = finish(tmp_path, 1, configuration(tmp_path, config, "run", take_down=str(tmp_path / "list.txt")))
    assert f"{len(listed)} document(s) that were taken down are no longer on the list; they stay out" in said
    weights, taken = read_ledger(tmp_path / "run" / "ledger.jsonl")
    assert weights == CHANGE
    assert isinstance(taken, TakeDown)
    assert taken.documents == {*listed, bytes(16)}
    resumed = tiny_run.read_metrics(tmp_path / "run", "resume")
    assert [record["world_size"] for record in resumed] == [3, 1]
    assert taken.n_start == 4 * resumed[0]["step"] > 0

    (tmp_path / "whole").mkdir()
    shutil.copy(tmp_path / "run" / "ledger.jsonl", tmp_path / "whole")
    shutil.copytree(tmp_path / "run" / "take_down", tmp_path / "whole" / "take_down")
    finish(tmp_path, 1, configuration(tmp_path, config, "whole"))

    pieces, whole = as_trained(tmp_path / "run"), as_trained(tmp_path / "whole")
    assert pieces == whole
    assert [len(rows) for rows, _, _ in whole] == [4] * 16 + [8] * 12
    assert sorted(n for rows, _, _ in whole for n in rows) == list(range(160))
    names = {one.hex() for one in taken.documents}
    before = resumed[0]["step"]
    assert any(names & documents for _, documents, _ in whole[:before])
    assert not any(names & documents for _, documents, _ in whole[before:])
    assert sum(empty[0] for _, _, empty in whole) > 10
    metrics = [tiny_run.read_metrics(tmp_path / name) for name in ("run", "whole")]
    for record, other in zip(*metrics, strict=True):
        assert record["loss"] == pytest.approx(other["loss"], rel=1e-4)
        for name in ("samples", "target_tokens", "realised_tokens"):
            assert record[name] == other[name]
        for name in ("skipped_pieces", "skipped_tokens"):
            assert record.get(name, 0) == other[name]  # before the take-down nothing is counted
    assert metrics[1][-1]["skipped_tokens"] > 1000
