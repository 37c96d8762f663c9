"""What is forgotten beyond its budget is said, answered with more replay, or stops the run; noise does none of it."""

import copy
import re

import pytest

from cpt_dist.errors import UserError
from cpt_dist.forgetting_config import ForgettingConfig, budgets, forgetting_problems
from cpt_dist.replay_config import ReplayConfig
from cpt_dist.retention.replay_controller import raised
from tests.helpers import tiny_run
from tests.helpers.in_process import ledger, lineage, train

ROLES = {"law": "domain", "web": "replay", "wiki": "replay"}


def problems(during=True, way=True, rule="off", roles=None, **fields):
    roles = ROLES | {"unread": "replay"} if roles is None else roles
    return forgetting_problems(ForgettingConfig(**fields), roles, {"law", "web", "wiki"}, rule, during, way)


def test_one_number_is_a_budget_of_every_replay_source():
    assert budgets(ForgettingConfig(0.02), ROLES) == {"web": 0.02, "wiki": 0.02}
    assert budgets(ForgettingConfig({"web": 0.02, "law": 0}), ROLES) == {"web": 0.02, "law": 0.0}
    assert problems(max_bpb_increase=0.02) == problems() == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_bpb_increase": -0.1}, "forgetting.max_bpb_increase: -0.1 must be bits per byte, 0 or more"),
        ({"max_bpb_increase": {"wbe": 0.1}}, "'wbe' is not in data.sources; did you mean 'web'?"),
        ({"max_bpb_increase": {}}, "it names no source"),
        ({"max_bpb_increase": {"unread": 0.1}}, "'unread' is read by no stage, so nothing of it is scored"),
        (
            {"max_bpb_increase": 0.1, "roles": {"law": "domain"}},
            "a number counts for replay sources, and there is none",
        ),
        ({"max_bpb_increase": 0.1, "action": "hold"}, "forgetting.action: 'hold' is unknown"),
        ({"action": "stop"}, "forgetting.action: 'stop' is read with forgetting.max_bpb_increase only"),
        ({"max_bpb_increase": 0.1, "action": "stop", "way": False}, "set evaluation.every_steps above 0"),
        ({"max_bpb_increase": 0.1, "during": False}, "set evaluation.during_training=true"),
        ({"max_bpb_increase": 0.1, "action": "raise_replay"}, "replay.rule is off; set replay.rule=bounded"),
        (
            {"max_bpb_increase": {"law": 0.1}, "action": "raise_replay", "rule": "bounded"},
            "'law' is a domain source, which more replay doesn't bring back",
        ),
    ],
)
def test_a_budget_that_cannot_act_is_refused_with_the_fix(given, message):
    (found,) = problems(**given)
    assert message in found


def test_replay_is_raised_by_a_step_up_to_its_bound_and_not_before_the_last_step_could_show():
    rule, shares = ReplayConfig("bounded", high=0.3, max_step=0.05, dwell_steps=10), {"law": 0.8, "web": 0.2}
    assert raised(rule, shares, ["web"], None, "why").shares == pytest.approx({"law": 0.75, "web": 0.25})
    assert raised(rule, {"law": 0.72, "web": 0.28}, ["web"], 10, "why").replay_share == pytest.approx(0.3)
    assert raised(rule, {"law": 0.7, "web": 0.3}, ["web"], None, "why") is None
    assert raised(rule, shares, ["web"], 9, "why") is None


@pytest.fixture(scope="module")
def forgetful(tmp_path_factory):
    """A run on the domain alone, nearly, which makes the general text less and less likely."""
    folder = tmp_path_factory.mktemp("budget")
    config = tiny_run.build(folder)
    config["stages"][0] |= {"tokens": "2048", "mixture": {"domain": 0.98, "general": 0.02}}
    config["schedule"] = {"name": "constant", "peak_lr": 1e-2, "warmup": 0.0}
    config["evaluation"] = {"max_tokens": "2k", "seq_len": 64, "bootstrap": 200, "every_steps": 2}
    plain = [one["loss"] for one in train(config, folder / "plain")]
    return folder, config, plain


def with_budget(forgetful, action, increase=0.1, **changes):
    config = copy.deepcopy(forgetful[1]) | changes
    config["forgetting"] = {"max_bpb_increase": increase, "action": action}
    return config


@pytest.mark.e2e
def test_a_warning_is_on_record_in_all_places_and_changes_no_loss(forgetful, capsys):
    folder, _, plain = forgetful
    found = train(with_budget(forgetful, "warn"), folder / "warn")
    assert [one["loss"] for one in found] == plain
    evaluations = tiny_run.read_metrics(folder / "warn", "evaluation")
    start, end = evaluations[0]["budget"]["general"], evaluations[-1]["budget"]["general"]
    assert (start["outcome"], start["rise"]) == ("within", 0.0)
    assert end["outcome"] == "exceeded"
    assert 0.1 < end["low"] < end["rise"] < end["high"]
    assert evaluations[-1]["forgetting"]["general"] == pytest.approx(end["rise"])
    assert evaluations[-1]["gain"]["domain"] > 0
    over = [one["step"] for one in evaluations if one["budget"]["general"]["outcome"] == "exceeded"]
    warnings = tiny_run.read_metrics(folder / "warn", "forgetting")
    assert [(one["step"], one["outcome"]) for one in warnings] == [(step, "warned") for step in over]
    shown = capsys.readouterr().out
    assert "over its budget" in shown
    assert "retention budget exceeded: 'general' has surely risen by" in shown


@pytest.mark.e2e
def test_a_stop_saves_ends_with_the_numbers_and_holds_until_the_budget_is_another(forgetful):
    folder, _, plain = forgetful
    config = with_budget(forgetful, "stop")
    stopped = r"retention budget exceeded at step \d: 'general' .* 0.1 bits per byte"
    with pytest.raises(UserError, match=stopped) as caught:
        train(config, folder / "stop")
    step = int(re.search(r"at step (\d+)", str(caught.value))[1])
    assert 0 < step < 8
    saved = [one["step"] for one in tiny_run.read_metrics(folder / "stop", "checkpoint")]
    assert saved == [step]
    assert lineage(folder / "stop")[-1]["stopped_for"] == "retention budget"
    with pytest.raises(UserError, match=f"retention budget exceeded at step {step}:"):
        train(config, folder / "stop")
    assert len(tiny_run.read_metrics(folder / "stop")) == step
    config["forgetting"]["max_bpb_increase"] = {"general": 50}
    assert [one["loss"] for one in train(config, folder / "stop")] == plain


@pytest.mark.e2e
def test_more_replay_is_decided_by_the_controller_and_kept_in_the_ledger(forgetful):
    folder, _, plain = forgetful
    # By its own rule it would do nothing, since so large a rise is accepted.
    replay = {"rule": "bounded", "low": 0.01, "high": 0.2, "max_step": 0.1, "dwell_steps": 2, "effect_steps": 1}
    replay |= {"tolerance": 90.0, "hysteresis": 0.0}
    config = with_budget(forgetful, "raise_replay", replay=replay)
    found = [one["loss"] for one in train(config, folder / "raise")]
    assert found != plain
    entries = ledger(folder / "raise", "weights")
    assert [round(one["weights"]["general"], 4) for one in entries] == [0.12, 0.2]
    assert "retention budget exceeded, 'general' has surely risen" in entries[0]["reason"]
    outcomes = [one["outcome"] for one in tiny_run.read_metrics(folder / "raise", "forgetting")]
    assert outcomes == [f"replay raised from sample {one['n_start']} on" for one in entries]
    last = tiny_run.read_metrics(folder / "raise", "evaluation")[-1]["budget"]["general"]
    assert last["outcome"] != "exceeded"  # it helped


@pytest.mark.e2e
def test_documents_too_few_to_decide_anything_trip_no_budget(forgetful):
    folder, _, plain = forgetful
    config = with_budget(forgetful, "stop", increase=0.0)
    config["evaluation"]["max_tokens"] = "100"
    assert [one["loss"] for one in train(config, folder / "few")] == plain
    last = tiny_run.read_metrics(folder / "few", "evaluation")[-1]["budget"]["general"]
    assert (last["outcome"], last["low"]) == ("undecided", None)
    assert last["rise"] > 0.1
