"""Gates on suites and long contexts: measured where the model lies, and refused early where they can't be."""

import copy
import json
import random

import pytest

from cpt_dist.errors import UserError
from cpt_dist.planning.run_plan import plan_run
from cpt_dist.training import trainer
from cpt_dist.training.setup import set_up
from tests.evaluation.suites.small import suite_file
from tests.helpers import tiny_run
from tests.helpers.in_process import ledger, train, typed
from tests.helpers.worker import inject

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
MARGINS = {
    "held_out": {"macro": 5.0},
    "suites": "non_inferior",
    "positions": {"8-32": 5.0, "32-100": -5.0},
    "long_tasks": {"passkey/100": 1.0},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("measured")
    config = tiny_run.build(folder)
    words, stage = tiny_run.WORDS, config["stages"][0] | {"tokens": "512"}
    config["stages"] = [stage | {"name": name} for name in ("first", "second", "third")]
    config["schedule"] = {"name": "constant", "peak_lr": 1e-2, "warmup": 0.0}
    texts = [{"text": " ".join(random.Random(seed).choices(words, k=100 + seed))} for seed in range(8)]
    (folder / "long.jsonl").write_text("".join(json.dumps(one) + "\n" for one in texts))
    long_context = {"documents": [str(folder / "long.jsonl")], "haystack": "noise", "items": 6}
    config["evaluation"] = {"max_tokens": "1k", "seq_len": 64, "bootstrap": 200, "long_context": long_context}
    rows = [{"query": " ".join(words[n : n + 5]), "choices": words[n + 5 : n + 9], "gold": n % 4} for n in range(12)]
    config["suites"] = {"run": [str(suite_file(folder, "choices", rows=rows, margin=0.9))]}
    config["checkpoint"] = {"every_steps": 3, "keep_last": 0}
    return folder, config


def gated(base, **gate):
    config = copy.deepcopy(base[1])
    config["stages"][1]["gate"] = {"on_fail": "continue", "on_undecided": "continue"} | gate
    return config


def test_a_gate_reads_suites_positions_and_tasks_and_changes_no_loss(base):
    folder, _ = base
    plain = train(base[1], folder / "plain")
    config = gated(base, margins=MARGINS)
    assert [one["loss"] for one in train(config, folder / "gated")] == [one["loss"] for one in plain]
    (decision,) = ledger(folder / "gated", "gate")
    found = {one["name"]: one for one in decision["evidence"]["measured"]}
    assert list(found) == ["macro", "choices", "8-32", "32-100", "passkey/100"]
    assert found["choices"]["margin"] == 0.9
    assert (found["choices"]["verdict"], found["8-32"]["verdict"], found["32-100"]["verdict"]) == (
        "pass",
        "pass",
        "fail",
    )
    assert found["passkey/100"]["high"] > 0.3  # six items that agree prove little
    assert decision["verdict"] == "fail"
    kept = json.loads((folder / "gated" / "gates" / "stage_start-second.json").read_text())["measured"]
    assert len(kept["positions"]["32-100"]["ids"]) == 8
    assert kept["suites"]["choices"]["ids"][0].startswith("choices/0/")

    marks = plan_run(typed(config, folder / "gated"))["stages"]
    saved = [one["step"] for one in tiny_run.read_metrics(folder / "gated", "checkpoint")]
    scored = [one["step"] for one in tiny_run.read_metrics(folder / "gated", "evaluation")]
    assert [step for stage in marks for step in stage["checkpoints"]] == saved == [2, 3, 4, 6]
    assert [step for stage in marks for step in stage["evaluations"]] == scored


def test_what_a_gate_cannot_measure_is_said_before_the_first_step(base):
    folder, _ = base
    margins = {"positions": {"8-5000": 0.1}, "long_tasks": {"kv/12": 0.1}, "held_out": {"general": 0.1}}
    config = gated(base, margins=margins)
    with pytest.raises(UserError, match="stage 'second' gate: positions 8-5000: no document has 5,000 tokens"):
        train(config, folder / "unmeasured")
    assert not (folder / "unmeasured" / "gates").exists()
    with pytest.raises(UserError, match=r"gate.margins.suites: 'choice' is none of suites.run; did you mean 'choices'"):
        train(gated(base, margins={"suites": {"choice": 0.1}}), folder / "unmeasured")


def test_other_items_than_at_the_start_are_refused_by_name(base):
    folder, _ = base
    config = gated(base, margins={"suites": {"choices": 0.1}}, against="run_start")
    train(config, folder / "other items", stop_after_stage="first")
    rows = [{"query": "w001 w002", "choices": ["w003", "w004"], "gold": 0}] * 12
    config["suites"]["run"] = [str(suite_file(folder / "changed", "choices", rows=rows))]
    with pytest.raises(UserError, match=r"suites of choices has other items than .* set the suites' files and"):
        train(config, folder / "other items")


def test_a_rewind_behind_an_edge_makes_its_verdict_and_its_baseline_again(base, monkeypatch):
    folder, _ = base
    config = gated(base, margins={"held_out": {"macro": 5.0}})
    config["checkpoint"] = {"every_steps": 1, "keep_last": 0}
    config["guards"] = {"max_skips": 2, "rewind_steps": 3, "max_rewinds": 1}

    def faulty(config, world):
        run = set_up(config, world)
        inject(run, {"5": {"rank": 0, "nll": "nan"}, "6": {"rank": 0, "nll": "nan"}})
        return run

    monkeypatch.setattr(trainer, "set_up", faulty)
    train(config, folder / "back")
    entries = ledger(folder / "back")
    assert [one["kind"] for one in entries] == ["gate", "skip", "skip", "skip", "gate"]
    assert entries[3]["evidence"]["position"] == 4  # after the first step, in the stage before the gate's
    first, second = (one["evidence"]["measured"][0]["difference"] for one in ledger(folder / "back", "gate"))
    assert first < 0  # the second stage had learned something
    assert second == 0.0  # the second time all of its steps were skipped
    train(config, folder / "back")
    assert len(ledger(folder / "back", "gate")) == 2
