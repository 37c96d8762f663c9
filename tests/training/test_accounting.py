"""Promises of the accounts: what was read is what the plan says, or the run stops with the source's name."""

import json
import subprocess
import sys
from collections import defaultdict
from types import SimpleNamespace

import pytest

from cpt_dist.data.order import SampleOrder
from cpt_dist.data.skip import Skip, SkippedSamples
from cpt_dist.training import setup
from cpt_dist.training.accounting import AccountingError, checked_accounts
from cpt_dist.training.run import Totals
from tests.e2e.conftest import tiny
from tests.helpers import tiny_run
from tests.helpers.memory_sources import order_of, source_rows, stage

__all__ = ["tiny"]


def a_run(position=12, samples=None):
    rows = [source_rows(name, 10, mean_tokens=7.9) for name in ("law", "news")]  # 79 tokens
    order = SampleOrder([stage(80, {"law": 0.7, "news": 0.3})], rows, 0)
    samples = samples or order.counts(position).tolist()
    store = SimpleNamespace(steps=lambda: [2])
    totals = Totals([62, 32], samples, [3, 0], [1, 0], [55, 30], [17, 32])
    run = SimpleNamespace(order=order, position=position, step=3, totals=totals, store=store)
    run.epoch_targets = [70, 70]
    run.joined_shares = {8: defaultdict(lambda: 0.25)}
    return run


def test_accounts_give_samples_and_epochs_beside_the_plan():
    accounts = checked_accounts(a_run())
    assert accounts["law"] == {
        "planned_samples": pytest.approx(8.4),
        "samples": 8,
        "planned_tokens": pytest.approx(8.4 * 7.9),
        "tokens": 62,
        "planned_loss_tokens": pytest.approx(8.4 * 7),
        "loss_tokens": 55,
        "planned_padding": pytest.approx(8.4 * 0.1),
        "padding": 1,
        "planned_joined_tokens": pytest.approx(8.4 * 7.9 * 0.25),
        "joined_tokens": 17,
        "skipped_pieces": 3,
        "skipped_tokens": 1,
        "epochs": {"8": 0.8},
    }


def test_skipped_samples_are_in_no_epoch():
    order = order_of([stage(40, {"law": 0.5, "news": 0.5})], {"law/high": 10, "law/low": 30, "news": 10})
    order.skipped = SkippedSamples([Skip(4, 8), Skip(12, 20)])
    run = a_run(position=16)
    run.epoch_targets = [70, 210, 70]
    run.order, run.totals = order, Totals([16, 16, 32], [2, 2, 4], [0] * 3, [0] * 3, [16, 16, 32])
    law = checked_accounts(run)["law"]
    assert law["epochs"] == {"8": pytest.approx(4 / 40)}
    assert law["strata"]["law/low"]["epochs"] == {"8": pytest.approx(2 / 30)}


def test_strata_are_beneath_their_source_which_has_their_sums():
    rows = {"law/high": 10, "law/low": 30, "news": 10}
    sources = [source_rows(name, number, mean_tokens=7.5) for name, number in rows.items()]
    order = SampleOrder([stage(40, {"law": 0.5, "news": 0.5})], sources, 0)
    run = a_run(position=16)
    run.epoch_targets = [60, 200, 70]
    run.order, run.totals = order, Totals([16, 46, 64], [2, 6, 8], [0] * 3, [0] * 3, [10, 40, 60])
    law = checked_accounts(run)["law"]
    assert law["strata"]["law/high"] | {"planned_samples": 2.0, "samples": 2} == law["strata"]["law/high"]
    assert [law[key] for key in ("samples", "tokens", "loss_tokens", "padding", "epochs")] == [8, 62, 50, 2, {"8": 0.2}]


@pytest.mark.parametrize(
    ("tokens", "skipped", "predicted"), [(65, 0, 60), (64, 1, 60), (61, 1, 55), (64, 0, 65), (62, 2, 51)]
)
def test_tokens_that_no_such_rows_can_hold_stop_the_run(tokens, skipped, predicted):
    run = a_run()
    run.totals = Totals([tokens, 32], [8, 4], [0, 0], [skipped, 0], [predicted, 30])
    with pytest.raises(
        AccountingError, match=r"'law': \d+ tokens \(\d+ of them predicted, of \d+ to \d+ that can be\)"
    ):
        checked_accounts(run)


@pytest.mark.parametrize("wrong", [-1, 0, 1])
@pytest.mark.parametrize("column", ["input_tokens_by_source", "target_tokens_by_source"])
def test_after_whole_epochs_tokens_and_loss_tokens_are_exact(column, wrong):
    run = a_run(position=0)
    run.order = SampleOrder([stage(20, {"law": 1.0})], [source_rows("law", 10, mean_tokens=7.9)], 0)
    run.position, run.epoch_targets, run.totals = 20, [70], Totals([158], [20], [0], [0], [140])
    setattr(run.totals, column, [getattr(run.totals, column)[0] + wrong])
    if wrong:
        with pytest.raises(AccountingError, match="source 'law': "):
            checked_accounts(run)
    else:
        assert checked_accounts(run)["law"]["planned_loss_tokens"] == 140


def test_a_step_that_the_ledger_skips_leaves_the_accounts_in_order():
    run = a_run()
    run.order = SampleOrder(run.order.stages, run.order._sources, 0, [Skip(4, 8)])
    run.totals = Totals([40, 24], [5, 3], [0, 0], [0, 0], [36, 20])
    law = checked_accounts(run)["law"]
    assert (law["samples"], law["planned_loss_tokens"]) == (5, pytest.approx(5.6 * 7))


def test_a_sample_too_few_stops_the_run_with_the_name_of_its_source():
    with pytest.raises(AccountingError, match=r"source 'news': 3 samples were read in 3 steps, but the plan has 4\."):
        checked_accounts(a_run(samples=[8, 3]))


def test_a_checkpoint_without_counts_of_samples_still_loads():
    trainer = {"position": 12, "optimizer_steps": 3, "totals": {"input_tokens_by_source": [1, 2], "target_tokens": 3}}
    store = SimpleNamespace(trainer=lambda step: trainer, load=lambda step, tensors: None)
    engine = SimpleNamespace(state_tensors=dict, state_loaded=lambda tensors, steps: None)
    run = a_run()
    run.store, run.engine, run.totals = store, engine, None
    run.guards = SimpleNamespace(restore=lambda state: None)
    setup.resume(run, 3)
    assert run.totals.samples_by_source == run.order.counts(12).tolist()
    assert run.totals.skipped_tokens_by_source == [0, 0]


@pytest.mark.e2e
@pytest.mark.distributed
def test_two_ranks_account_for_every_sample_and_the_ledger_finds_their_documents(tiny):
    changes = {"checkpoint": {"every_steps": 5}, "engine": tiny.config["engine"] | {"micro_batch": 3}}
    tiny_run.launch("torchrun", 2, "train.py", *tiny.arguments(**changes))
    accounts = tiny_run.read_metrics(tiny.run_dir, "checkpoint")
    assert [sum(source["samples"] for source in record["accounts"].values()) for record in accounts] == [20, 40, 60, 80]
    words = [sys.executable, "-m", "cpt_dist.data.ledger", f"run_dir={tiny.run_dir}", "steps=1-20"]
    subprocess.run([*words, f"json={tiny.run_dir}/a.json"], cwd=tiny_run.ROOT, check=True, capture_output=True)
    answer = json.loads((tiny.run_dir / "a.json").read_text())
    last = accounts[-1]["accounts"]
    for name, source in answer["sources"].items():
        assert (source["samples"], source["tokens"]) == (last[name]["samples"], last[name]["tokens"])
