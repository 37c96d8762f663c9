"""The control arm is the same training on the replay sources alone, whatever the stages read."""

from dataclasses import replace

import pytest

from cpt_dist.cli import composed
from cpt_dist.control_arm import control_arm
from cpt_dist.errors import UserError

DEMO = ["experiment=demo", "control_arm=true", "run_dir=runs/control"]


def test_it_reads_replay_alone_for_as_many_tokens_under_the_same_schedule():
    arm, main = composed(DEMO), composed(["experiment=demo"])
    assert arm.stages[0].mixture == {"icd10cm": 0.0, "sotu": 0.25}
    assert arm.stages[0].tokens == main.stages[0].tokens
    assert (arm.schedule, arm.optimizer, arm.seed) == (main.schedule, main.optimizer, main.seed)


def test_replay_sources_keep_their_shares_and_strata_among_each_other():
    strata = "data.sources.sotu.strata={by: length, edges: [100], names: [short, long]}"
    mixture = "stages.0.mixture={icd10cm: [[0, 0.9], [1, 0.5]], sotu: {share: 0.3, strata: {short: 1, long: 2}}}"
    read = composed([*DEMO, strata, mixture]).stages[0].mixture
    assert read == {"icd10cm": 0.0, "sotu": {"share": 0.3, "strata": {"short": 1, "long": 2}}}


@pytest.mark.parametrize("share", ["0", "[[0, 0], [1, 0]]"])
def test_a_stage_without_replay_takes_all_that_there_is(share):
    arm = composed([*DEMO, f"stages.0.mixture.sotu={share}"])
    assert arm.stages[0].mixture == {"icd10cm": 0.0, "sotu": 1.0}


def test_what_would_make_it_another_training_is_taken_out():
    more = ["evaluation.during_training=true", "evaluation.every_steps=4", "replay.rule=bounded"]
    more += ["forgetting.max_bpb_increase=0.01", "stages.0.curriculum={name: gradual, start: {sotu: 1}}"]
    more += ["stages.0.gate={margins: {held_out: {macro: 0.1}}}", "distillation.weight=0.5"]
    arm = composed([*DEMO, *more, "data.sources.sotu.max_epochs=0.5", "data.sources.sotu.on_cap=renormalise"])
    assert arm.stages[0].curriculum is None
    assert arm.stages[0].gate is None
    assert arm.replay.rule == "off"
    assert arm.forgetting.max_bpb_increase is None
    assert arm.distillation is None
    assert (arm.data.sources["sotu"].max_epochs, arm.data.sources["sotu"].on_cap) == (None, "error")


def test_it_has_no_other_plans_to_go_over_to():
    main = composed(["experiment=demo"])
    assert control_arm(replace(main, alternatives={"gentle": main.stages})).alternatives == {}


def test_the_control_arm_of_a_control_arm_is_itself():
    arm = composed(DEMO)
    assert control_arm(arm) == arm


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["data.sources.sotu.role=domain"], "role: replay"),
        (["stages.0.tokens=null", "stages.0.epochs=2"], "stages.0.epochs=null"),
        (["stages.0.mixture={icd10cm: 1, sotu: [[0, 0], [1, 1]]}"], "shares"),
    ],
)
def test_where_there_can_be_none_the_fix_is_named(words, named):
    with pytest.raises(UserError, match=named):
        composed([*DEMO, *words])
