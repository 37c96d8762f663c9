"""Runs that begin elsewhere than at sample 0 of the base model, and plans that grow: no sample twice, none left out."""

import copy
import json

import pytest

from cpt_dist.checkpoint.dcp import SafeReader
from cpt_dist.data import ledger as reader
from cpt_dist.errors import UserError
from cpt_dist.training import setup
from tests.helpers import tiny_run
from tests.helpers.in_process import Killed, killed_in, ledger, lineage, train

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("forks")
    config = tiny_run.build(folder)
    stage = config["stages"][0] | {"tokens": "1024", "name": "first"}
    config["stages"] = [stage, stage | {"name": "second"}]
    config["schedule"] = {"name": "wsd", "peak_lr": 1e-3, "warmup": 0.25, "decay": 0.25}
    config["checkpoint"] = {"every_steps": 1, "keep_last": 0}
    train(config, folder / "parent")
    return folder, config


def steps(run_dir):
    return {one["step"]: (one["stage"], one["loss"], one["lr"]) for one in tiny_run.read_metrics(run_dir)}


def documents(run_dir, first, last):
    """What the steps of a run read: document, place and n of each piece."""
    found = reader.Ledger.open(run_dir).of_steps(first, last)["documents"]
    return {(one["document"], json.dumps(read, sort_keys=True)) for one in found for read in one["read"]}


@pytest.mark.parametrize("step", ["3", "first", "6", "latest"])
def test_a_fork_of_the_same_plan_is_the_rest_of_the_parent(base, step):
    folder, config = base
    parent, number = steps(folder / "parent"), {"first": 4, "latest": 8}.get(step) or int(step)
    run_dir = folder / f"fork {step}"
    more = copy.deepcopy(config)
    more["stages"].append(config["stages"][0] | {"name": "third"})
    found = train(more, run_dir, fork={"run_dir": str(folder / "parent"), "step": step})
    assert [one["step"] for one in found] == list(range(number + 1, 13))
    made = steps(run_dir)
    assert {at: made[at] for at in range(number + 1, 9)} == {at: parent[at] for at in range(number + 1, 9)}
    assert lineage(run_dir)[0]["parent"]["step"] == number
    assert documents(run_dir, 1, 8) == documents(folder / "parent", 1, 8)


def test_a_cool_down_cuts_the_stage_and_begins_at_its_rate(base):
    folder, config = base
    short = copy.deepcopy(config)
    short["stages"] = [
        config["stages"][0],
        config["stages"][1] | {"name": "cool-down", "tokens": "512", "schedule": {"name": "linear_to_zero"}},
    ]
    run_dir = folder / "cool"
    fork = {"run_dir": str(folder / "parent"), "step": "2", "cut_stage": True}
    train(short, run_dir, fork=fork)
    made = steps(run_dir)
    assert [(stage, round(rate, 12)) for stage, _, rate in made.values()] == [("cool-down", 5e-4), ("cool-down", 0.0)]
    # The rows after the cut are the next ones of the sources: none is read twice before their epoch is over.
    read = reader.Ledger.open(run_dir).order
    assert read.stage_starts == [0, 8, 16]
    pairs = [read.sample(n) for n in range(16)]
    assert len(set(pairs)) == 16
    assert pairs[:8] == [reader.Ledger.open(folder / "parent").order.sample(n) for n in range(8)]


def test_a_fork_that_is_killed_forks_again_from_the_same_checkpoint(base):
    folder, config = base
    run_dir, parent = folder / "killed", folder / "growing"
    first = copy.deepcopy(config)
    train(first, parent, stop_after_stage="first")
    fork = {"run_dir": str(parent), "step": "latest"}
    with killed_in(setup, "take_down"), pytest.raises(Killed):
        train(config, run_dir, fork=fork)
    train(config, parent)
    assert list(steps(run_dir)) == [] if (run_dir / "metrics.jsonl").exists() else True
    train(config, run_dir, fork=fork)
    assert list(steps(run_dir)) == [5, 6, 7, 8]
    assert steps(run_dir) == {at: one for at, one in steps(parent).items() if at > 4}


def test_another_past_is_refused_by_name(base):
    folder, config = base
    other = copy.deepcopy(config)
    other["stages"][0]["mixture"] = {"domain": 0.5, "general": 0.5}
    fork = {"run_dir": str(folder / "parent"), "step": "6"}
    with pytest.raises(UserError) as caught:
        train(other, folder / "refused", fork=fork)
    assert caught.value.problems[0].startswith("fork: stage 'first' share of source 'domain' was 0.7 and is 0.5")
    future = copy.deepcopy(config)
    future["stages"][1]["mixture"] = {"domain": 1.0}
    train(future, folder / "future", fork=fork | {"step": "first"})
    with pytest.raises(UserError, match=r"fork.step: there is no checkpoint of step secnd .* stages: first, second"):
        train(config, folder / "unknown", fork=fork | {"step": "secnd"})


def test_a_reset_at_a_fork_leaves_no_moments(base):
    folder, config = base
    run_dir = folder / "reset"
    train(config, run_dir, fork={"run_dir": str(folder / "parent"), "step": "7", "optimizer": "reset"})
    trainer = json.loads((run_dir / "checkpoints" / "step-00000008" / "trainer.json").read_text())
    assert trainer["updates"] == [[["*"], 1]]


def test_a_run_may_begin_with_a_later_stage(base):
    folder, config = base
    run_dir = folder / "late"
    train(config, run_dir, start_at_stage="second")
    assert list(steps(run_dir)) == [5, 6, 7, 8]
    assert [(one["n_start"], one["n_stop"], one["what"]) for one in ledger(run_dir, "skip")] == [(0, 16, "start")]
    assert documents(run_dir, 5, 8) == documents(folder / "parent", 5, 8)
    (account, *_) = tiny_run.read_metrics(run_dir, "checkpoint")
    assert sum(one["samples"] for one in account["accounts"].values()) == 4
    weights = folder / "late from a run"
    train(config, weights, start_at_stage="second", fork={"run_dir": str(folder / "parent"), "step": "4"})
    rates = [steps(run)[5][2] for run in (weights, folder / "parent")]
    assert rates[0] == rates[1]
    assert steps(weights)[5][1] == steps(folder / "parent")[5][1]
    assert steps(weights)[5][1] != steps(run_dir)[5][1]


def test_a_plan_that_grows_goes_on_where_it_was(base):
    folder, config = base
    run_dir = folder / "longer"
    steady = copy.deepcopy(config) | {"schedule": {"name": "constant", "peak_lr": 1e-3, "warmup": 0.0}}
    whole = copy.deepcopy(steady)
    whole["stages"] = [steady["stages"][0], steady["stages"][1] | {"tokens": "1536"}]
    train(steady, run_dir)
    train(whole, run_dir)
    with killed_in(setup, "take_down"), pytest.raises(Killed):
        train(whole, run_dir)
    whole["stages"].append(steady["stages"][0] | {"name": "third", "tokens": "512"})
    train(whole, run_dir)
    at_once = folder / "at once"
    train(whole, at_once)
    assert steps(run_dir) == steps(at_once)
    assert len(steps(run_dir)) == 12


def test_a_longer_stage_whose_rate_would_jump_is_refused(base):
    folder, config = base
    run_dir = folder / "jump"
    train(config, run_dir)
    longer = copy.deepcopy(config)
    longer["stages"][1]["tokens"] = "2048"
    with pytest.raises(UserError, match=r"stage 'second' had 1024 tokens and has 2048; its learning rate would jump"):
        train(longer, run_dir)
    longer["stages"][1]["tokens"] = "768"
    with pytest.raises(UserError, match="stage 'second' length in samples"):
        train(longer, run_dir)
    assert SafeReader(run_dir / "checkpoints" / "step-00000008" / "state").tensor_shapes()
