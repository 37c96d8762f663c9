"""Promises of adaptive replay in a run: decisions are kept, act, survive a stop, and their ledger is the run."""

import shutil

import pytest

from cpt_dist.data.ledger_entry import read_ledger
from tests.helpers.tiny_run import build, launch, read_metrics, write_experiment

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adaptive")
    config = build(folder)
    config["evaluation"] |= {"max_tokens": "2k", "every_steps": 4, "during_training": True, "bootstrap": 200}
    # An untrained model gets better at everything, so replay is lowered; each decision by 0.02.
    config["replay"] = {"rule": "bounded", "low": 0.1, "max_step": 0.02, "dwell_steps": 4, "effect_steps": 2}
    return folder, write_experiment(folder, config)


def train(folder, configs, name, *arguments, launcher="python", processes=1):
    options = (f"--config-dir={configs}", "experiment=tiny", f"run_dir={folder / name}", *arguments)
    launch(launcher, processes, "train.py", *options)
    return read_metrics(folder / name)


def test_decisions_act_where_the_ledger_says_and_the_ledger_alone_gives_the_same_run(tiny):
    folder, configs = tiny
    steps = train(folder, configs, "adaptive", "data.num_workers=1")
    ledger = read_ledger(folder / "adaptive" / "ledger.jsonl")
    assert [entry.evidence["step"] for entry in ledger] == [4, 8, 12, 16]
    assert [entry.n_start for entry in ledger] == [24, 40, 56, 72]
    assert [round(entry.weights["general"], 6) for entry in ledger] == [0.28, 0.26, 0.24, 0.22]
    assert len(read_metrics(folder / "adaptive", "ledger")) == 4

    (folder / "replayed").mkdir()
    shutil.copy(folder / "adaptive" / "ledger.jsonl", folder / "replayed")
    replayed = train(folder, configs, "replayed", "replay.rule=off")
    assert [s["loss"] for s in replayed] == [s["loss"] for s in steps]
    assert [s["realised_tokens"] for s in replayed] == [s["realised_tokens"] for s in steps]

    (folder / "cut").mkdir()
    for name in ("ledger.jsonl", "replay_baseline.json", "config.yaml"):
        shutil.copy(folder / "adaptive" / name, folder / "cut")
    # Begun again, from before the first decision: none is taken twice.
    again = train(folder, configs, "cut")
    assert [s["loss"] for s in again] == [s["loss"] for s in steps]
    assert read_ledger(folder / "cut" / "ledger.jsonl") == ledger


@pytest.mark.distributed
def test_two_ranks_take_the_same_decisions_and_one_goes_on_in_the_middle_of_them(tiny):
    folder, configs = tiny
    steps = train(folder, configs, "two", "checkpoint.every_steps=10", launcher="torchrun", processes=2)
    ledger = read_ledger(folder / "two" / "ledger.jsonl")
    assert [entry.n_start for entry in ledger] == [24, 40, 56, 72]

    shutil.rmtree(folder / "two" / "checkpoints" / "step-00000020")
    resumed = train(folder, configs, "two")
    assert read_metrics(folder / "two", "resume")[-1]["step"] == 10
    assert [s["loss"] for s in resumed] == pytest.approx([s["loss"] for s in steps], abs=1e-4)
    assert [s["realised_tokens"] for s in resumed] == [s["realised_tokens"] for s in steps]
    assert read_ledger(folder / "two" / "ledger.jsonl") == ledger
