"""Each trouble of learning has a run that shows it, one that doesn't, and one that can't tell."""

import json

import pytest

from cpt_dist.config import AlternativeConfig, ScheduleConfig, SourceConfig
from cpt_dist.doctor.learning import (
    CHECKS,
    instability,
    learning_rate_off_plan,
    missing_replay,
    plateau,
    severe_forgetting,
    slow_convergence,
)
from tests.doctor.run_folder import configured, evaluation, losses


def changes(finding):
    return {one.key: (one.now, one.to) for one in finding.changes}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_healthy_run_is_healthy(run, check):
    assert check(run()).status == "healthy"


@pytest.mark.parametrize("check", [c for c in CHECKS if c is not missing_replay], ids=lambda check: check.__name__)
def test_an_empty_run_has_not_enough_data(run, check):
    assert check(run(0, evaluations=[])).status == "not enough data"


def test_a_stage_plan_without_stages_has_not_enough_data_on_replay(run):
    case = run()
    case.config.stages = []
    assert missing_replay(case).status == "not enough data"


@pytest.mark.parametrize(("rise", "severity"), [(1.021, "warning"), (1.049, "warning"), (1.051, "severe")])
def test_forgetting_is_found_with_its_steps_and_more_replay(run, rise, severity):
    found = severe_forgetting(run(evaluations=[evaluation(0, 1.0, 2.0), evaluation(150, 0.9, 2.0 * rise)]))
    assert (found.status, found.severity) == ("found", severity)
    assert "'wiki': 2.0000 bits per byte at step 0" in found.evidence[0]
    assert "at step 150" in found.evidence[0]
    assert changes(found)["stages.0.mixture"] == ({"law": 0.9, "wiki": 0.1}, {"law": 0.75, "wiki": 0.25})
    assert changes(found)["replay.rule"] == ("off", "bounded")
    assert changes(found)["evaluation.every_steps"] == (0, 10)
    assert changes(found)["schedule.peak_lr"] == (3e-5, 1e-5)


def test_forgetting_within_the_stability_gap_is_a_warning(run):
    found = severe_forgetting(run(10, evaluations=[evaluation(0, 1.0, 2.0), evaluation(10, 0.9, 2.4)]))
    assert found.severity == "warning"
    assert "stability gap" in found.evidence[1]


@pytest.mark.parametrize("rise", [0.9, 1.0, 1.0199])
def test_a_small_rise_and_a_fall_are_no_forgetting(run, rise):
    assert (
        severe_forgetting(run(evaluations=[evaluation(0, 1, 2.0), evaluation(150, 1, 2.0 * rise)])).status == "healthy"
    )


def test_forgetting_that_nobody_measures_is_said(run):
    records = [evaluation(0, 1.0, 1.0), evaluation(150, 0.9, 1.0)]
    for record in records:
        del record["sources"]["wiki"]
    assert "isn't measured" in severe_forgetting(run(evaluations=records)).evidence[0]


def test_a_mixture_without_general_text_is_found(run, tmp_path):
    config = configured(tmp_path / "run")
    config.stages[0].mixture = {"law": 1.0}
    found = missing_replay(run(config=config))
    assert (found.status, found.evidence) == ("found", ("stage 'main' reads no source with role replay",))
    assert changes(found)["stages.0.mixture"] == ({"law": 1.0}, {"law": 0.95, "wiki": 0.05})


def test_a_share_of_zero_is_no_replay(run, tmp_path):
    config = configured(tmp_path / "run")
    config.stages[0].mixture = {"law": 1.0, "wiki": 0.0}
    assert missing_replay(run(config=config)).status == "found"


def test_a_loss_that_never_falls_is_slow_convergence_and_no_plateau(run):
    case = run(values=losses(150, 3.0, 3.0))
    found = slow_convergence(case)
    assert found.status == "found"
    assert changes(found)["schedule.peak_lr"] == (3e-5, 9e-5)
    assert "domain loss 2.9983 in steps 1 to 15, 3.0036 in steps 136 to 150" in found.evidence[0]
    assert plateau(case).status == "healthy"


@pytest.mark.parametrize(("noise", "status"), [(0.001, "found"), (0.5, "not enough data")])
def test_noise_is_told_from_slow_convergence(run, noise, status):
    assert slow_convergence(run(values=losses(150, 3.0, 2.98, noise))).status == status


def flat_after(step, num_steps=150):
    values = losses(num_steps, 3.0, -3.0, noise=0.0005)
    return [value if index < step else values[step] + 0.0005 * (-1) ** index for index, value in enumerate(values)]


def test_a_loss_that_stops_falling_is_a_plateau_and_no_slow_convergence(run):
    case = run(values=flat_after(40))
    found = plateau(case)
    assert found.status == "found"
    assert changes(found)["stages.0.tokens"] == ("51200", "42240")
    assert slow_convergence(case).status == "healthy"


def test_a_flat_end_of_a_run_is_no_plateau(run):
    assert plateau(run(200, values=flat_after(40, 200))).status == "healthy"


def test_a_flat_loss_under_a_decayed_rate_is_no_plateau(run):
    assert (
        plateau(run(values=flat_after(40), steps={"lr": lambda step: 3e-5 if step < 100 else 3e-6})).status == "healthy"
    )


@pytest.mark.parametrize("check", [slow_convergence, plateau])
@pytest.mark.parametrize("num_steps", [39])
def test_few_steps_say_nothing_of_convergence(run, check, num_steps):
    assert check(run(num_steps)).status == "not enough data"


def test_a_spike_is_found_with_its_step(run):
    values = losses(150)
    values[100] = 6.0
    found = instability(run(values=values))
    assert found.status == "found"
    assert "1 spikes; at step 101 the loss is 6.000" in found.evidence[0]
    assert changes(found)["guards.spike_threshold"] == (0.0, 8.0)
    assert changes(found)["schedule.peak_lr"] == (3e-5, 1e-5)


def test_a_leap_between_stages_is_no_spike(run, tmp_path):
    config = configured(tmp_path / "run")
    first = config.stages[0]
    config.stages = [
        type(first)(**vars(first) | {"name": name, "tokens": str(100 * 256)}) for name in ("first", "second")
    ]
    values = [value + (index >= 100) for index, value in enumerate(losses(150))]
    assert instability(run(values=values, config=config)).status == "healthy"


@pytest.mark.parametrize(("late", "status"), [(2.9, "healthy"), (3.0, "found")])
def test_a_gradient_norm_that_grows_threefold_is_found(run, late, status):
    found = instability(run(steps={"grad_norm": lambda step: 1.0 if step < 100 else late}))
    assert found.status == status
    assert not found.evidence or "from 1 to 3, 3.0 times" in found.evidence[0]


def test_clipping_that_is_off_is_turned_on(run, tmp_path):
    config = configured(tmp_path / "run")
    config.optimizer.max_grad_norm = 0.0
    config.schedule = ScheduleConfig(name="constant", warmup=0.0)
    found = instability(run(config=config, steps={"grad_norm": lambda step: float(step**3)}))
    assert changes(found)["optimizer.max_grad_norm"] == (0.0, 1.0)
    assert changes(found)["schedule.warmup"] == (0.0, 0.01)


def test_skipped_steps_and_a_run_that_stopped_on_them_are_found(run):
    skip = {"kind": "skip", "step": 12, "reason": "the loss is nan"}
    found = instability(run(12, others=[skip]))
    assert (found.severity, found.evidence) == (
        "warning",
        ("1 steps were skipped, the newest step 12: the loss is nan",),
    )


def test_a_report_of_bad_numbers_is_severe(run):
    report = {"bad_steps": [{"step": 7}, {"step": 8}]}
    found = instability(run(6, prepare=lambda folder: (folder / "bad_numbers.json").write_text(json.dumps(report))))
    assert found.severity == "severe"
    assert "steps [7, 8]" in found.evidence[0]


def test_a_learning_rate_of_another_schedule_is_found(run):
    found = learning_rate_off_plan(run(steps={"lr": lambda step: 3e-5}))
    assert found.status == "found"
    assert "first step 1: 3e-05 was used, 1.5e-05 was planned" in found.evidence[0]
    assert found.numbers["checked"] == 150


def test_the_rate_of_each_stage_is_that_of_its_own_schedule(run, tmp_path):
    config = configured(tmp_path / "run")
    first = config.stages[0]
    config.stages = [
        type(first)(**vars(first) | {"name": "first", "tokens": str(100 * 256)}),
        type(first)(**vars(first) | {"name": "second", "schedule": ScheduleConfig(peak_lr=1e-5)}),
    ]
    case = run(config=config)
    assert learning_rate_off_plan(case).status == "healthy"
    assert case.schedule_key() == "stages.1.schedule.peak_lr"


def test_a_start_with_another_schedule_is_held_against_its_own_configuration(run, tmp_path):
    case = run()
    case.log.starts.append({"kind": "resume", "step": 100})
    other = configured(tmp_path / "other")
    other.schedule.peak_lr = 6e-5
    case.start_configs.append(other)
    for record in case.steps[100:]:
        record["lr"] *= 2
    assert learning_rate_off_plan(case).status == "healthy"
    case.start_configs[1] = case.start_configs[0]
    assert learning_rate_off_plan(case).numbers["off"] == 50


def test_several_general_sources_share_the_replay(run, tmp_path):
    config = configured(tmp_path / "run")
    config.data.sources["web"] = SourceConfig(raw=["web"], role="replay")
    config.stages[0].mixture = {"law": 0.96, "wiki": 0.03, "web": 0.01}
    found = severe_forgetting(run(config=config, evaluations=[evaluation(0, 1, 1.0), evaluation(150, 1, 1.1)]))
    assert changes(found)["stages.0.mixture"][1] == {"law": 0.95, "wiki": 0.0375, "web": 0.0125}


def test_a_stage_in_epochs_has_the_length_that_the_order_knows(run, tmp_path):
    config = configured(tmp_path / "run")
    config.stages[0].tokens, config.stages[0].epochs = None, 2.0
    order = {"stages": [{"name": "main", "num_samples": 800, "batch_samples": 4}]}
    case = run(0, config=config, evaluations=[], prepare=lambda f: (f / "order.json").write_text(json.dumps(order)))
    assert [(place.key, place.num_samples) for place in case.places] == [("stages.0", 800)]
    case.order = None
    assert case.places == []
    assert missing_replay(case).status == "not enough data"


def test_a_run_that_has_forked_is_examined_by_the_stages_that_it_went_through(run, tmp_path):
    config = configured(tmp_path / "run")
    other = type(config.stages[0])(**vars(config.stages[0]) | {"name": "other"})
    config.alternatives = {"short": AlternativeConfig(stages=[other])}
    order = {"stages": [{"name": "other", "num_samples": 800, "batch_samples": 4}]}
    case = run(config=config, prepare=lambda f: (f / "order.json").write_text(json.dumps(order)))
    assert [place.key for place in case.places] == ["alternatives.short.stages.0"]
    assert "has forked" in learning_rate_off_plan(case).evidence[0]
