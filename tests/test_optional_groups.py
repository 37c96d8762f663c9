"""Overrides reach into groups that are null by default, as a mapping and by a key below."""

import pytest

from cpt_dist.cli import composed
from cpt_dist.errors import UserError


@pytest.mark.parametrize(
    "words",
    [
        ["stages.0.curriculum={name: gradual, start: {sotu: 1}}"],
        ["stages.0.curriculum.name=gradual", "stages.0.curriculum.start={sotu: 1}"],
    ],
)
def test_a_null_group_is_made_with_its_defaults(words):
    curriculum = composed(["experiment=demo", *words]).stages[0].curriculum
    assert (curriculum.name, curriculum.start, curriculum.shape) == ("gradual", {"sotu": 1}, "linear")


def test_distillation_is_null_until_a_word_asks_for_it():
    assert composed(["experiment=demo"]).distillation is None
    asked = composed(["experiment=demo", "distillation.weight=0.5"]).distillation
    assert (asked.weight, asked.temperature, asked.tokens, asked.teacher) == (0.5, 1.0, "replay", None)


def test_a_null_group_inside_a_mapping_is_made():
    words = ["data.sources.sotu.strata={by: length, edges: [100]}", "data.sources.sotu.strata.names=[short,long]"]
    strata = composed(["experiment=demo", *words]).data.sources["sotu"].strata
    assert (strata.by, strata.edges, strata.names) == ("length", [100], ["short", "long"])


def test_null_stays_null_and_a_wrong_key_is_named():
    assert composed(["experiment=demo", "stages.0.curriculum=null"]).stages[0].curriculum is None
    with pytest.raises(UserError, match="shap"):
        composed(["experiment=demo", "stages.0.curriculum.shap=linear"])


def test_a_mapping_with_free_keys_takes_new_ones():
    words = ["data.sources.web.raw=[web.jsonl]", "data.sources.web.role=replay", "stages.0.mixture.web=0.3"]
    config = composed(["experiment=demo", *words])
    assert config.data.sources["web"].role == "replay"
    assert config.stages[0].mixture == {"icd10cm": 0.75, "sotu": 0.25, "web": 0.3}
