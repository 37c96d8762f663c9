"""Each trouble of running has a run that shows it, one that doesn't, and one that can't tell."""

import json

import pytest

from cpt_dist.doctor.running import (
    CHECKS,
    failed_saves,
    lost_job,
    mixture_off_plan,
    out_of_memory,
    slow_saves,
    starved_loader,
    straggler,
)
from tests.doctor.run_folder import NOW, configured, heartbeat, save


def changes(finding):
    return {one.key: (one.now, one.to) for one in finding.changes}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_healthy_run_is_healthy(run, check):
    assert check(run()).status == "healthy"


def without_logs(folder):
    (folder / "logs" / "1.0" / "rank-00000.out").unlink()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_an_empty_run_has_not_enough_data(run, check):
    case = run(0, evaluations=[], beats=[], prepare=without_logs, world_size=2)
    assert check(case).status == "not enough data"


MEMORY = [
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
    "RuntimeError: [enforce fail at alloc_cpu.cpp:116] DefaultCPUAllocator: can't allocate memory: you tried to",
    "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0",
    "MemoryError",
    "OSError: [Errno 12] Cannot allocate memory",
]


@pytest.mark.parametrize("line", MEMORY)
def test_lack_of_memory_is_found_in_the_logs(run, tmp_path, line):
    config = configured(tmp_path / "run")
    config.engine.micro_batch = 4

    def prepare(folder):
        (folder / "logs" / "1.0" / "rank-00001.out").write_text(f"begin\n{line}\nend\n")

    found = out_of_memory(run(config=config, prepare=prepare))
    assert (found.status, found.severity) == ("found", "severe")
    assert "rank-00001.out, line -2: " + line in found.evidence[0]
    assert changes(found)["engine.micro_batch"] == (4, 2)
    assert changes(found)["model.activation_checkpointing"] == (False, True)
    assert "engine.zero_stage" not in changes(found)


def test_logs_given_on_the_command_line_are_read(run, tmp_path):
    case = run()
    (tmp_path / "mine.log").write_text("CUDA out of memory\n")
    case.logs.append(tmp_path / "mine.log")
    assert out_of_memory(case).status == "found"


@pytest.mark.parametrize(("share", "status"), [(0.1, "healthy"), (0.11, "found")])
def test_a_starved_loader_is_found(run, share, status):
    found = starved_loader(run(steps={"data_wait_share": share}))
    assert found.status == status
    assert changes(found).get("data.num_workers") == ((0, 2) if status == "found" else None)


def test_shards_behind_a_url_are_fetched_further_ahead(run, tmp_path):
    config = configured(tmp_path / "run")
    config.data.shards, config.data.num_workers = "s3://bucket/shards", 4
    assert changes(starved_loader(run(config=config, steps={"data_wait_share": 0.5}))) == {
        "data.num_workers": (4, 8),
        "data.prefetch_shards": (2, 4),
        "data.shuffle_window_shards": (0, 8),
    }


def slow(rank, seconds, phase="forward and backward"):
    return {"rank": rank, "node": f"node{rank}", "phase": phase, "seconds": seconds, "median_seconds": 1.0}


@pytest.mark.parametrize(("seconds", "status"), [(1.2, "healthy"), (1.21, "found")])
def test_a_rank_that_lags_is_found_with_its_node(run, seconds, status):
    beats = [heartbeat(0), heartbeat(1)]
    found = straggler(run(steps={"straggler": slow(1, seconds)}, world_size=2, beats=beats))
    assert found.status == status
    assert "rank 1 on node1 was the slowest in 50 of 50 steps" in found.evidence[0]
    assert changes(found).get("cluster.sbatch") == (([], ["--exclude=node1"]) if status == "found" else None)


def test_ranks_that_take_turns_are_no_straggler(run):
    assert straggler(run(steps={"straggler": lambda step: slow(step % 2, 1.8)}, world_size=2)).status == "healthy"


def test_a_rank_that_waits_for_its_batches_gets_workers(run):
    found = straggler(run(steps={"straggler": slow(1, 1.8, "data")}, world_size=2))
    assert changes(found) == {"data.num_workers": (0, 2)}


@pytest.mark.parametrize(("law", "status"), [(0.904, "healthy"), (0.92, "found")])
def test_a_mixture_off_its_plan_is_found(run, law, status):
    realised = {"realised_tokens": lambda step: {"law": law * step * 256, "wiki": (1 - law) * step * 256}}
    found = mixture_off_plan(run(steps=realised))
    assert found.status == status
    assert f"'law' at step 150: {law:.2%} of tokens were read, 90.00% were planned" in found.evidence[0]


def test_early_in_a_run_whole_rows_are_no_trouble(run):
    realised = {"realised_tokens": lambda step: {"law": 0.9 * step * 256 + 64, "wiki": 0.1 * step * 256 - 64}}
    assert mixture_off_plan(run(10, steps=realised)).status == "healthy"


def test_a_checkpoint_that_never_came_is_found(run, tmp_path):
    config = configured(tmp_path / "run")

    def prepare(folder):
        (folder / "checkpoints" / ".step-00000100.tmp").mkdir(parents=True)
        (folder / "logs" / "1.0" / "rank-00000.out").write_text("OSError: [Errno 28] No space left on device\n")

    found = failed_saves(run(180, config=config, saves=[save(50)], prepare=prepare))
    assert (found.status, found.severity, found.numbers["missing"]) == ("found", "severe", [100])
    assert any("No space left on device" in line for line in found.evidence)
    assert found.evidence[-1] == "begun and not whole: .step-00000100.tmp"
    assert changes(found)["checkpoint.keep_last"] == (3, 1)


def test_the_newest_save_may_still_be_under_way(run):
    assert failed_saves(run(160, saves=[save(50), save(100)])).status == "healthy"


def test_no_save_is_due_at_a_step_that_was_skipped(run):
    skip = {"kind": "skip", "step": 50, "reason": "spike"}
    assert failed_saves(run(160, saves=[save(100)], others=[skip])).status == "healthy"


@pytest.mark.parametrize(("stall", "status"), [(5.0, "healthy"), (6.0, "found")])
def test_saves_that_stall_training_are_found(run, tmp_path, stall, status):
    config = configured(tmp_path / "run")
    config.checkpoint.asynchronous = False
    found = slow_saves(run(config=config, saves=[save(50, stall), save(100, stall)]))
    assert found.status == status
    if status == "found":
        assert changes(found) == {"checkpoint.asynchronous": (False, True), "checkpoint.every_steps": (50, 57)}


def test_a_silent_job_is_found_with_the_rank_that_is_behind_and_who_missed_it(run):
    beats = [heartbeat(0, time=NOW - 600), heartbeat(1, time=NOW - 700, step=99, phase="optimizer")]
    report = {"start": "1", "rank": 0, "lost": [{"rank": 1, "node": "node1", "why": "doesn't answer"}]}

    def prepare(folder):
        (folder / "health" / "lost.jsonl").write_text(json.dumps(report) + "\n")

    found = lost_job(run(beats=beats, prepare=prepare))
    assert (found.status, found.severity) == ("found", "severe")
    assert "600 s old; rank 1 on node1 was in step 99, optimizer" in found.evidence[0]
    assert found.evidence[1] == "rank 0 missed rank 1 on node1: it doesn't answer"
    assert "goes on from the newest checkpoint (step 150)" in found.advice[0]


def test_a_rank_that_stays_in_one_phase_is_found(run):
    found = lost_job(run(beats=[heartbeat(0, phase="meeting"), heartbeat(1, seconds=901.0)]))
    assert "1 rank(s) are in one phase for over 900 s" in found.evidence[0]


@pytest.mark.parametrize("beats", [[heartbeat(phase="end", time=NOW - 9000)], [heartbeat(time=NOW - 119)]])
def test_a_job_that_ended_in_order_or_lives_is_healthy(run, beats):
    assert lost_job(run(beats=beats)).status == "healthy"


def test_a_finished_run_is_not_gone(run):
    assert lost_job(run(200, beats=[heartbeat(time=NOW - 9000)])).status == "healthy"
