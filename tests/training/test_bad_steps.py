"""Bad numbers on one of two ranks: skip the step, go back, stop; and the ledger alone is the run."""

import copy
import json
import shutil

import pytest

from cpt_dist.checkpoint.dcp import SafeReader
from cpt_dist.data.ledger_entry import read_ledger
from tests.engine.conftest import run_jobs
from tests.helpers import tiny_run

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(1200)]

NAN, SPIKE, LEAP = {"rank": 1, "divisor": 1e-300}, {"rank": 1, "divisor": 1e-6}, {"rank": 1, "nll": 1e3}
LOST = {"rank": 1, "nll": "nan"}
ENGINES = {
    "fsdp": {"name": "fsdp"},
    "zero3": {"name": "zero"},
    "zero1": {"name": "zero", "zero_stage": 1},
    "zero0": {"name": "zero", "zero_stage": 0},
    "zero2": {"name": "zero", "zero_stage": 2},
    "bf16": {"name": "zero", "zero_stage": 1, "precision": "bf16"},
}
FAULTS = {
    "skip": {"7": NAN},
    "spike": {"13": SPIKE, "17": LEAP},
    "back": {"12": NAN, "13": NAN},
    "spikes back": {"12": SPIKE, "13": SPIKE},
    "stop": {str(step): LOST for step in range(12, 21)},
}
CASES = [("fsdp", "skip"), ("fsdp", "spike"), ("fsdp", "back"), ("fsdp", "stop")]
CASES += [("zero3", "spikes back"), ("zero1", "spike"), ("zero0", "spike"), ("zero2", "spike"), ("bf16", "spike")]
REPLAYED = [
    ("fsdp", "spike"),
    ("fsdp", "back"),
    ("zero3", "spikes back"),
    ("zero1", "spike"),
    ("zero2", "spike"),
    ("bf16", "spike"),
]
STOPS = {"in the window": 11, "between bad steps": 12}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    base = tiny_run.build(folder)
    base["checkpoint"] = {"every_steps": 5, "keep_last": 0}
    base["guards"] = {"max_skips": 2, "rewind_steps": 3, "max_rewinds": 1, "spike_threshold": 8, "window": 16}

    def job(run_dir, engine, faults=None, stop_at=None):
        config = copy.deepcopy(base) | {"run_dir": str(run_dir)}
        config["engine"] = config["engine"] | ENGINES[engine]
        return 2, {"config": config, "faults": faults or {}, "stop_at": stop_at}

    run_jobs(folder, [job(folder / f"{engine} {name}", engine, FAULTS[name]) for engine, name in CASES])
    for engine, name in REPLAYED:
        (folder / f"{engine} {name} again").mkdir()
        shutil.copy(folder / f"{engine} {name}" / "ledger.jsonl", folder / f"{engine} {name} again")
    (folder / "in the window").mkdir()
    shutil.copy(folder / "fsdp back" / "ledger.jsonl", folder / "in the window")
    stopped = [
        job(folder / name, "fsdp", {} if name == "in the window" else FAULTS["back"], stop_at)
        for name, step in STOPS.items()
        for stop_at in (step, None)
    ]
    run_jobs(folder, [job(folder / f"{engine} {name} again", engine) for engine, name in REPLAYED] + stopped)
    return folder


def weights(run_dir, step=20):
    reader = SafeReader(run_dir / "checkpoints" / f"step-{step:08d}" / "state")
    return {name: reader.tensor(name) for name in sorted(reader.tensor_shapes())}


def steps_recorded(run_dir):
    return [record["step"] for record in tiny_run.read_metrics(run_dir)]


@pytest.mark.parametrize(("engine", "name"), REPLAYED)
def test_a_fresh_run_with_the_ledger_alone_has_the_same_weights_bit_by_bit(runs, engine, name):
    first, again = weights(runs / f"{engine} {name}"), weights(runs / f"{engine} {name} again")
    assert any(key.startswith("optimizer.") for key in first)
    assert [key for key, value in first.items() if not value.equal(again[key])] == []
    assert read_ledger(runs / f"{engine} {name} again" / "ledger.jsonl") == read_ledger(
        runs / f"{engine} {name}" / "ledger.jsonl"
    )


def test_a_skipped_step_changes_no_weight_and_the_position_moves_on(runs):
    (skip,) = read_ledger(runs / "fsdp skip" / "ledger.jsonl")
    assert (skip.n_start, skip.n_stop, skip.what) == (24, 28, "step")
    assert skip.evidence["grad_norm"] in ("nan", "inf")
    assert steps_recorded(runs / "fsdp skip") == [step for step in range(1, 21) if step != 7]
    (last,) = [r for r in tiny_run.read_metrics(runs / "fsdp skip", "checkpoint") if r["step"] == 20]
    assert sum(source["samples"] for source in last["accounts"].values()) == 76
    trainer = json.loads((runs / "fsdp skip" / "checkpoints" / "step-00000020" / "trainer.json").read_text())
    assert (trainer["optimizer_steps"], trainer["totals"]["skipped_steps"]) == (19, 1)


@pytest.mark.parametrize("engine", ["fsdp", "zero1", "zero0", "zero2", "bf16"])
def test_a_spike_of_gradient_or_loss_is_skipped_and_nothing_else_is(runs, engine):
    first, second = read_ledger(runs / f"{engine} spike" / "ledger.jsonl")
    assert (first.n_start, second.n_start) == (48, 64)
    assert "log gradient norm" in first.reason
    assert second.reason.startswith("the loss")


@pytest.mark.parametrize("name", ["fsdp back", "zero3 spikes back"])
def test_bad_steps_in_a_row_lead_back_to_a_checkpoint_and_their_window_is_skipped(runs, name):
    first, second, window = read_ledger(runs / name / "ledger.jsonl")
    assert (first.n_start, second.n_start) == (44, 48)
    # Three steps before the first bad one is sample 32; the newest checkpoint before it is that of step 5.
    assert (window.n_start, window.n_stop, window.evidence["checkpoint"]) == (32, 52, 5)
    assert steps_recorded(runs / name)[-7:] == [14, 15, 16, 17, 18, 19, 20]
    weights(runs / name, step=10)  # made again, without what is skipped


@pytest.mark.parametrize("name", STOPS)
def test_a_run_that_is_asked_to_stop_among_skipped_steps_goes_on_as_if_it_had_not(runs, name):
    assert [record["step"] for record in tiny_run.read_metrics(runs / name, "resume")] == [STOPS[name]]
    first, again = weights(runs / "fsdp back"), weights(runs / name)
    assert [key for key, value in first.items() if not value.equal(again[key])] == []
    assert [entry.effect for entry in read_ledger(runs / name / "ledger.jsonl")] == [
        entry.effect for entry in read_ledger(runs / "fsdp back" / "ledger.jsonl")
    ]


def test_when_going_back_does_not_help_the_run_stops_and_names_steps_and_documents(runs):
    run_dir = runs / "fsdp stop"
    (line,) = (runs / "fsdp stop.error-1").read_text().splitlines()
    assert line == (runs / "fsdp stop.error-0").read_text()
    assert "steps 14 to 15 have bad numbers (the loss is nan) and going back 1 time(s) did not help" in line
    assert str(run_dir / "bad_numbers.json") in line
    report = json.loads((run_dir / "bad_numbers.json").read_text())
    suspects = {name for event in report["bad_steps"] for name in event["documents"]}
    assert suspects
    assert suspects < set(report["documents"])
    assert sorted(report["documents"])[0] in json.dumps(report)
    assert {step for one in report["documents"].values() for step in one["steps"]} == {14, 15}
    assert not (run_dir / "checkpoints" / "step-00000020").exists()
