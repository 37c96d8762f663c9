"""Promises of the accounts: what was read is what the plan says, or the run stops with the source's name."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from cpt_dist.training import setup
from cpt_dist.training.accounting import AccountingError, checked_accounts
from cpt_dist.training.run import Totals
from tests.e2e.conftest import tiny
from tests.helpers import tiny_run
from tests.helpers.memory_sources import order_of, stage

__all__ = ["tiny"]


def a_run(position=12, samples=None):
    order = order_of([stage(40, {"law": 0.7, "news": 0.3})], {"law": 10, "news": 10})
    samples = samples or order.counts(position).tolist()
    store = SimpleNamespace(steps=lambda: [2])
    totals = Totals([64, 32], samples, [3, 0], [17, 0])
    return SimpleNamespace(order=order, position=position, step=3, totals=totals, store=store)


def test_accounts_give_samples_and_epochs_beside_the_plan():
    accounts = checked_accounts(a_run())
    skipped = {"skipped_pieces": 3, "skipped_tokens": 17}
    planned = {"planned_samples": pytest.approx(8.4), "samples": 8, "tokens": 64, "epochs": {"8": 0.8}}
    assert accounts["law"] == planned | skipped


def test_a_sample_too_few_stops_the_run_with_the_name_of_its_source():
    with pytest.raises(AccountingError, match=r"source 'news': 3 samples were read in 3 steps, but the plan has 4\."):
        checked_accounts(a_run(samples=[8, 3]))


def test_a_checkpoint_without_counts_of_samples_still_loads():
    trainer = {"position": 12, "optimizer_steps": 3, "totals": {"input_tokens_by_source": [1, 2], "target_tokens": 3}}
    store = SimpleNamespace(trainer=lambda step: trainer, load=lambda step, tensors: None)
    engine = SimpleNamespace(state_tensors=dict, state_loaded=lambda tensors, steps: None)
    run = a_run()
    run.store, run.engine, run.totals = store, engine, None
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
