"""A plan with many mistakes: each of them named, with value and fix, in one go."""

import json

import pytest

from cpt_dist.config import AlternativeConfig, CptConfig, ScheduleConfig, SourceConfig, StageConfig
from cpt_dist.errors import UserError
from cpt_dist.gate_config import GateConfig
from cpt_dist.model.stage_lengths import length_problems
from cpt_dist.validation import validate

CONFIG_JSON = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 128}


def made(tmp_path, *stages, **alternatives):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG_JSON | {"rope_theta": 10000.0}))
    config = CptConfig(run_dir=str(tmp_path))
    config.model.path = str(tmp_path)
    config.data.sources = {"law": SourceConfig(raw=["a"]), "web": SourceConfig(raw=["b"], role="replay")}
    config.stages, config.alternatives = list(stages), alternatives
    return config


def stage(name, **changes):
    return StageConfig(
        name, **{"tokens": "4k", "seq_len": 64, "batch_tokens": "640", "mixture": {"law": 1.0}} | changes
    )


def problems(config):
    with pytest.raises(UserError) as caught:
        validate(config, [length_problems])
    return caught.value.problems


def test_all_mistakes_of_a_plan_are_named_at_once(tmp_path):
    config = made(
        tmp_path,
        stage("none", tokens=None),
        stage("both", epochs=1),
        stage("long", seq_len=160, batch_tokens="640"),
        stage("unknown", mixture={"lwa": 1.0}),
        stage("ungated", gate=GateConfig()),
        stage("negative", schedule=ScheduleConfig(peak_lr=-1e-5)),
        stage("risen", schedule=ScheduleConfig(start_lr_ratio=1.5, min_lr_ratio=2.0)),
        stage("forked", gate=GateConfig({"held_out": {"wbe": 0.1}}, on_fail="fork", fork_to="shrot")),
        stage("frozen", trainable=["!*"], optimizer="rest"),
        short=AlternativeConfig([stage("other", epochs={"web": 2})]),
    )
    config.stop_after_stage = "unknwon"
    config.evaluation.during_training = False
    found = problems(config)
    for expected in (
        "stages.0 ('none'): neither tokens nor epochs is given; give one of them",
        "stages.1 ('both'): tokens and epochs are both given",
        "stages.2 ('long').seq_len: 160 is beyond the 128 positions that its model declares; give the stage a rope",
        "stages.3 ('unknown').mixture: source 'lwa' is not in data.sources; did you mean 'law'?",
        "stages.4 ('ungated').gate.margins: the gate names no evaluation",
        "stages.5 ('negative').schedule.peak_lr: -1e-05 must be positive",
        "stages.6 ('risen').schedule.start_lr_ratio: 1.5 must lie within 0 to 1; a learning rate never rises past",
        "stages.6 ('risen').schedule.min_lr_ratio: 2.0 must lie within 0 to 1",
        "stages.7 ('forked').gate.margins.held_out: 'wbe' is neither a source nor macro; did you mean 'web'?",
        "stages.7 ('forked').gate.fork_to: 'shrot' is not in alternatives; did you mean 'short'?",
        "stages.7 ('forked').gate: evaluation.during_training is false",
        "stages.8 ('frozen').trainable: ['!*'] takes no parameter in",
        "stages.8 ('frozen').optimizer: 'rest' is unknown; did you mean 'reset'?",
        "alternatives.short.stages.0 ('other'): tokens and epochs are both given",
        "stop_after_stage: there is no stage 'unknwon'; did you mean 'unknown'?",
    ):
        assert any(one.startswith(expected) for one in found), (expected, found)


@pytest.mark.parametrize(
    ("epochs", "message"),
    [
        (0, "0 must be a positive number"),
        ("2", "'2' must be a positive number"),
        ({}, "it names no source"),
        ({"web": 1.0}, "source 'web' is not in mixture"),
    ],
)
def test_epochs_that_say_nothing_are_refused(tmp_path, epochs, message):
    (found,) = problems(made(tmp_path, stage("main", tokens=None, epochs=epochs)))
    assert message in found


def test_a_number_of_epochs_needs_a_domain_source(tmp_path):
    (found,) = problems(made(tmp_path, stage("main", tokens=None, epochs=2, mixture={"web": 1.0})))
    assert "a number counts domain sources, and mixture names none" in found


def test_the_plan_behind_a_fork_is_checked_too(tmp_path):
    gate = GateConfig({"held_out": {"macro": 0.1}}, on_fail="fork", fork_to="short")
    after = stage("other", schedule=ScheduleConfig(peak_lr=None))
    config = made(
        tmp_path, stage("first", schedule=ScheduleConfig(min_lr_ratio=0.0)), stage("second", gate=gate),
        short=AlternativeConfig([after]),
    )  # fmt: skip
    (found,) = problems(config)
    assert found.startswith(
        "after a fork at stage 'second': stages.1 ('other').schedule.peak_lr: the stage before ends"
    )


def test_what_a_gate_measures_has_to_be_asked_for_elsewhere_too(tmp_path):
    margins = {
        "suites": "non_inferior",
        "positions": {"64-32": 0.1, "0-64": None},
        "long_tasks": {"passky/64": 0.1, "kv": 0.1, "macro": 0.1},
        "held_out": 0.1,
        "suits": {"x": 1},
    }
    config = made(tmp_path, stage("main", gate=GateConfig(margins), context_parallel=1))
    config.data.held_out_fraction = 0.0
    found = problems(config)
    for expected in (
        "margins.suites: suites.run names no suite, so none is asked; set suites.run=[FILE.yaml, …]",
        "margins.positions: '64-32' is no bucket of positions START-STOP that rises",
        "margins.positions.0-64: None must be a finite number",
        "margins.long_tasks: there is no task 'passky'; did you mean 'passkey'?",
        "margins.long_tasks: 'kv' lacks the tokens of its prompts; write kv/16384",
        "margins.long_tasks: a mean would hide the one that fails",
        "margins.held_out: 0.1 says nothing of what may be worse by how much; write {macro: 0.01}",
        "margins: 'suits' is no evaluation that a gate knows; did you mean 'suites'?",
        "its long-context evaluation has no documents, since data.held_out_fraction is 0",
    ):
        assert any(expected in one for one in found), (expected, found)


def test_ranks_that_share_rows_of_an_alternative_are_checked_too(tmp_path):
    gate = GateConfig({"held_out": {"macro": 0.1}}, on_fail="fork", fork_to="short")
    other = AlternativeConfig([stage("other", context_parallel=0), stage("tiny", context_parallel=99)])
    found = problems(made(tmp_path, stage("main", gate=gate), short=other))
    assert found == [
        "alternatives.short.stages.0 ('other').context_parallel: 0 must be at least 1 (1: no sharing)",
        "alternatives.short.stages.1 ('tiny').context_parallel: 99 ranks cannot share rows of 64 tokens; lower it to 1",
    ]


def test_names_of_stages_are_names_of_checkpoints_only_where_they_can_be(tmp_path):
    (found,) = problems(made(tmp_path, stage("2", keep=True)))
    assert "stages.0 ('2').name: '2' names a checkpoint or a folder" in found
    validate(made(tmp_path, stage("2")))
