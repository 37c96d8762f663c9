"""Strata, instruction data, a take-down and a source that grows between two starts, on two processes and on one."""

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cpt_dist.data.ledger_entry import LedgerEntry, read_ledger
from cpt_dist.data.take_down import TakeDown
from tests.e2e.test_elastic import as_trained, finish, ids_of
from tests.helpers import tiny_run

pytestmark = [pytest.mark.e2e, pytest.mark.distributed]

STRATA = {"low": 1, "middle": 1, "high": 2}


def configuration(folder):
    """The tiny run with strata of `domain` and conversations beside it, prepared."""
    config = tiny_run.build(folder)
    words = tiny_run.WORDS[700:]
    with open(folder / "chat.jsonl", "w") as handle:
        for number in range(120):
            asked, answer = (" ".join(words[number : number + length]) for length in (number % 11 + 1, number % 7 + 2))
            turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
            handle.write(json.dumps({"messages": turns}) + "\n")
    config["data"]["sources"]["domain"]["strata"] = {"by": "length", "edges": [20, 40]}
    chat = {"raw": [str(folder / "chat.jsonl")], "role": "replay", "chat_field": "messages"}
    config["data"]["sources"]["chat"] = chat
    mixture = {"domain": {"share": 0.7, "strata": STRATA}, "general": 0.1, "chat": 0.2}
    config["stages"] = [config["stages"][0] | {"mixture": mixture, "tokens": "2560"}]
    prepare(config)
    return config


def prepare(config):
    from omegaconf import OmegaConf

    from cpt_dist.config import CptConfig
    from cpt_dist.data import prepare

    prepare.prepare(OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(CptConfig), config)))


def started(folder, config, processes, run_dir, **data):
    """Run a job to its end; its newest accounts."""
    config = copy.deepcopy(config) | {"run_dir": str(folder / run_dir)}
    config["data"] |= data
    finish(folder, processes, config)
    return tiny_run.read_metrics(folder / run_dir, "checkpoint")[-1]["accounts"]


def test_two_processes_over_strata_chat_growth_and_a_take_down_train_on_what_one_process_does(tmp_path):
    config = configuration(tmp_path)
    run, listed = tmp_path / "run", ids_of(tmp_path, "domain")[::5]
    (tmp_path / "list.txt").write_text("".join(f"{one.hex()}\n" for one in listed))
    first = started(tmp_path, config, 2, "run", take_down=str(tmp_path / "list.txt"))
    domain = first["domain"]
    assert list(domain["strata"]) == ["domain/low", "domain/middle", "domain/high"]
    for key in ("samples", "tokens", "loss_tokens", "padding", "skipped_tokens"):
        assert domain[key] == sum(view[key] for view in domain["strata"].values()) > 0
    step = tiny_run.read_metrics(run)[-1]
    assert step["realised_tokens"]["domain"] == domain["tokens"]
    half = step["planned_tokens"]["domain"] / 2
    assert step["strata"]["domain/high"]["planned_tokens"] == pytest.approx(half)

    raw = tmp_path / "more.jsonl"
    tiny_run.write_corpus(raw, 50, 60, seed=7)
    config["data"]["sources"]["domain"]["raw"].append(str(raw))
    config["data"]["sources"]["domain"]["grow"] = True
    prepare(config)
    config["stages"].append(config["stages"][0] | {"name": "later"})
    last = started(tmp_path, config, 2, "run")
    taken, grown = read_ledger(run / "ledger.jsonl")  # growth is written behind the take-down and keeps it
    assert isinstance(taken, TakeDown)
    assert (taken.n_start, taken.documents) == (0, set(listed))
    assert isinstance(grown, LedgerEntry)
    assert (grown.n_start, grown.generations) == (40, {"domain": [1]})
    assert last["domain"]["strata"]["domain@1/high"]["samples"] > 0

    (tmp_path / "whole").mkdir()
    shutil.copy(run / "ledger.jsonl", tmp_path / "whole")
    shutil.copytree(run / "take_down", tmp_path / "whole/take_down")
    assert started(tmp_path, config, 1, "whole") == last
    trained = as_trained(run)
    assert trained == as_trained(tmp_path / "whole")
    assert sorted(n for rows, _, _ in trained for n in rows) == list(range(80))
    assert not {one.hex() for one in listed} & {one for _, documents, _ in trained for one in documents}
    for record, other in zip(*(tiny_run.read_metrics(path) for path in (run, tmp_path / "whole")), strict=True):
        assert record["loss_by_source"] == pytest.approx(other["loss_by_source"], rel=1e-4)

    chat = last["chat"]  # what the user says is read and not predicted
    assert 0 < chat["loss_tokens"] < 0.7 * chat["tokens"]
    assert chat["loss_tokens"] == pytest.approx(chat["planned_loss_tokens"], rel=0.25)
    words = [sys.executable, "-m", "cpt_dist.data.ledger", f"run_dir={run}", "steps=1-20"]
    subprocess.run([*words, f"json={run}/a.json"], cwd=tiny_run.ROOT, check=True, capture_output=True)
    answer = json.loads(Path(run / "a.json").read_text())["sources"]["domain"]
    samples = {name: view["samples"] for name, view in answer["strata"].items()}
    assert samples == {name: view["samples"] for name, view in last["domain"]["strata"].items()}
