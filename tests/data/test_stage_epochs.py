"""Stages given in epochs: what they come to, by the sample order's own counts."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpt_dist.config import CptConfig, CurriculumConfig, SourceConfig, StageConfig
from cpt_dist.data.run_order import sample_order, stages_of_run
from cpt_dist.data.stage_epochs import kept_stages, tokens_of_epochs
from cpt_dist.errors import UserError
from tests.helpers.memory_sources import MemorySource


def sources(of_a=((20, 60, 90), (80, 33)), of_b=((200, 140),)):
    return [
        MemorySource("a", [list(x) for x in of_a], first_document=1),
        MemorySource("b", [list(x) for x in of_b], first_document=50),
    ]


def configured(tmp_path, **stage):
    config = CptConfig(run_dir=str(tmp_path))
    given_stage = {"seq_len": 8, "batch_tokens": "16", "mixture": {"a": 0.6, "b": 0.4}} | stage
    config.stages = [StageConfig(**given_stage)]
    config.data.sources = {"a": SourceConfig(raw=["a"]), "b": SourceConfig(raw=["b"])}
    return config


SHARES = st.one_of(
    st.floats(0.05, 5), st.tuples(st.floats(0.05, 3), st.floats(0.05, 3)).map(lambda p: [[0, p[0]], [0.5, p[1]]])
)


@settings(max_examples=20, deadline=None)
@given(times=st.floats(0.3, 5), a=SHARES, b=SHARES)
def test_a_source_is_read_as_often_as_asked_to_a_step_and_never_more(tmp_path_factory, times, a, b):
    config = configured(tmp_path_factory.mktemp("run"), epochs={"a": times}, mixture={"a": a, "b": b})
    order = sample_order(config, sources(), [])
    rows = order.rows_read(order.num_samples)["a"][8]
    asked = times * rows.num_rows
    longer = configured(tmp_path_factory.mktemp("run"), mixture={"a": a, "b": b})
    longer.stages[0].tokens = str((order.stages[0].num_steps + 1) * 16)
    beyond = sample_order(longer, sources(), []).rows_read(order.num_samples + 2)["a"][8]
    assert rows.samples <= asked + 1 or order.stages[0].num_steps == 1  # a count is at most one off its share
    assert beyond.samples >= asked - 1


def test_a_cap_of_the_same_number_does_not_bind(tmp_path):
    config = configured(tmp_path, epochs={"a": 2})
    config.data.sources["a"].max_epochs = 2.0
    assert sample_order(config, sources(), []).num_samples


def test_a_number_counts_all_domain_sources_and_no_replay(tmp_path):
    both, one = sources(), sources()
    one[1].role = "replay"
    stage = configured(tmp_path, epochs=1).stages[0]
    assert tokens_of_epochs(stage, both) == pytest.approx(283 + 340, abs=24)
    assert tokens_of_epochs(stage, one) == pytest.approx(283 / 0.6, abs=32)


def test_the_first_source_of_a_mapping_that_is_through_ends_the_stage(tmp_path):
    alone = [tokens_of_epochs(configured(tmp_path, epochs=e).stages[0], sources()) for e in ({"a": 3}, {"b": 1})]
    assert alone[0] != alone[1]
    together = tokens_of_epochs(configured(tmp_path, epochs={"a": 3, "b": 1}).stages[0], sources())
    assert together == min(alone)


def test_a_curriculum_counts_with_the_shares_that_it_moves_through(tmp_path):
    ramp = CurriculumConfig("gradual", start={"b": 1.0}, ramp=1.0)
    config = configured(tmp_path, epochs={"a": 2}, curriculum=ramp)
    order = sample_order(config, sources(), [])
    assert order.epochs(order.num_samples)["a"][8] == pytest.approx(2, abs=0.1)
    assert order.num_samples > sample_order(configured(tmp_path, epochs={"a": 2}), sources(), []).num_samples * 1.5


def test_what_a_run_resolved_holds_when_a_source_has_grown(tmp_path):
    config = configured(tmp_path, epochs={"a": 2})
    kept = kept_stages(config, stages_of_run(config, sources()))
    (tmp_path / "stages.json").write_text(json.dumps(kept))
    grown = sources(of_a=((20, 60, 90), (80, 33), (400,)))
    assert stages_of_run(config, grown)[0].tokens == stages_of_run(config, sources())[0].tokens
    config.stages[0].epochs = {"a": 3}
    assert stages_of_run(config, grown)[0].tokens != str(kept["main"]["tokens"])


def test_a_source_without_rows_or_share_gives_no_length(tmp_path):
    with pytest.raises(UserError, match="stage 'main' epochs: source 'b' has no rows or no share"):
        sample_order(configured(tmp_path, epochs={"b": 1}, mixture={"a": 1.0, "b": 0.0}), sources(), [])
