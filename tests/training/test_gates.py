"""Gates at the ends of stages: decided once, on record, and acted on whatever is killed in between."""

import copy
import json

import pytest

from cpt_dist.errors import UserError
from cpt_dist.training import branches, gates
from tests.helpers import tiny_run
from tests.helpers.in_process import Killed, killed_in, ledger, lineage, train

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

FAILS, PASSES = {"held_out": {"macro": -5.0}}, {"held_out": {"macro": 5.0, "domain": 5.0}}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gates")
    config = tiny_run.build(folder)
    stage = config["stages"][0] | {"tokens": "512"}
    config["stages"] = [stage | {"name": name} for name in ("first", "second", "third")]
    config["schedule"] = {"name": "constant", "peak_lr": 1e-3, "warmup": 0.0}
    config["alternatives"] = {"short": {"stages": [stage | {"name": "other", "mixture": {"general": 1.0}}]}}
    config["evaluation"] = {"max_tokens": "1k", "seq_len": 64, "bootstrap": 200}
    config["checkpoint"] = {"every_steps": 0, "keep_last": 1}
    return folder, config


def gated(base, **gate):
    config = copy.deepcopy(base[1])
    config["stages"][1]["gate"] = gate
    return config


def losses(records):
    return [(record["stage"], record["loss"]) for record in records]


@pytest.fixture(scope="module")
def plain(base):
    """Losses of the plan, and of the plan that the fork leads to, without any gate."""
    folder, config = base
    whole = losses(train(config, folder / "plain"))
    other = copy.deepcopy(config)
    other["stages"] = [config["stages"][0], *config["alternatives"]["short"]["stages"]]
    other["alternatives"] = {}
    return whole, losses(train(other, folder / "other"))


def test_a_passed_gate_changes_nothing_and_is_on_record(base, plain):
    folder, _ = base
    config = gated(base, margins=PASSES, against="base")
    assert losses(train(config, folder / "passed")) == plain[0]
    (decision,) = ledger(folder / "passed", "gate")
    assert (decision["stage"], decision["verdict"], decision["action"]) == ("second", "pass", "continue")
    assert decision["n_start"] == 16
    (record,) = tiny_run.read_metrics(folder / "passed", "gate")
    assert [one["name"] for one in record["measured"]] == ["macro", "domain"]
    edge = next(one for one in lineage(folder / "passed") if one["event"] == "stage" and one["stage"] == "second")
    assert edge["gate"] == {"verdict": "pass", "action": "continue"}
    assert edge["checkpoint"]["step"] == 4


def test_a_stopped_run_stops_again_unmeasured_until_the_gate_lets_it_through(base, plain, monkeypatch):
    folder, _ = base
    config = gated(base, margins=FAILS)
    run_dir = folder / "stopped"
    with pytest.raises(UserError, match=r"stage .second. is done and its gate is not passed .fail.: macro"):
        train(config, run_dir)
    monkeypatch.setitem(gates.MEASURES, "held_out", None)
    with pytest.raises(UserError, match="its gate is not passed"):
        train(config, run_dir)
    assert len(ledger(run_dir, "gate")) == 1
    config["stages"][1]["gate"]["on_fail"] = "continue"
    assert losses(train(config, run_dir)) == plain[0]
    assert [one["action"] for one in ledger(run_dir, "gate")] == ["stop", "continue"]


@pytest.mark.parametrize("stage", [0, 1])
def test_a_fork_goes_on_from_before_the_stage_as_if_it_had_never_been(base, plain, stage):
    folder, _ = base
    config = copy.deepcopy(base[1])
    config["stages"][stage]["gate"] = {"margins": FAILS, "against": "run_start", "on_fail": "fork", "fork_to": "short"}
    run_dir = folder / f"forked-{stage}"
    found = losses(train(config, run_dir))
    if stage == 1:
        assert found == plain[1]
    else:
        assert [name for name, _ in found] == ["other"] * 2
    (decision,) = ledger(run_dir, "gate")
    assert (decision["action"], decision["back_to"], decision["fork_to"]) == ("fork", 8 * stage, "short")
    assert not any(path.name.startswith("before-") for path in (run_dir / "checkpoints").iterdir())


def test_a_fork_without_an_alternative_leaves_the_stage_out(base):
    folder, _ = base
    config = gated(base, margins=FAILS, on_fail="fork")
    assert [name for name, _ in losses(train(config, folder / "skipped"))] == ["first"] * 2 + ["third"] * 2


@pytest.mark.parametrize("where", ["measuring", "deciding", "decided", "giving up"])
def test_a_kill_at_a_fork_changes_nothing_of_it(base, plain, where):
    folder, _ = base
    config = gated(base, margins=FAILS, on_fail="fork", fork_to="short")
    run_dir = folder / f"killed {where}"
    kill = {
        "measuring": (gates, "compare", False),
        "deciding": (gates, "write_ledger", False),
        "decided": (gates, "write_ledger", True),
        "giving up": (branches, "retire", True),
    }[where]
    with killed_in(*kill), pytest.raises(Killed):
        train(config, run_dir)
    assert losses(train(config, run_dir)) == plain[1]
    assert len(ledger(run_dir, "gate")) == 1


def test_a_gate_on_more_than_was_measured_is_refused_with_the_reason(base):
    folder, _ = base
    config = gated(base, margins=FAILS)
    run_dir = folder / "late"
    with killed_in(gates, "compare"), pytest.raises(Killed):
        train(config, run_dir)
    (run_dir / "gates" / "stage_start-second.json").unlink()
    with pytest.raises(UserError, match="held_out was not measured at the stage start, which this run has passed"):
        train(config, run_dir)


def test_models_of_stages_are_made_beside_training_and_after_a_kill(base):
    folder, _ = base
    config = copy.deepcopy(base[1])
    for stage in config["stages"][:2]:
        stage["consolidate"] = True
    config["stages"][0]["keep"] = True
    run_dir = folder / "models"
    from cpt_dist.checkpoint import stage_model

    with killed_in(stage_model.subprocess, "Popen", times=2), pytest.raises(Killed):
        train(config, run_dir)
    train(config, run_dir)
    for name in ("first", "second"):
        assert json.loads((run_dir / "stage_models" / name / "config.json").read_text())["model_type"] == "llama"
    assert json.loads((run_dir / "checkpoints" / "names.json").read_text()) == {"first": 2}
