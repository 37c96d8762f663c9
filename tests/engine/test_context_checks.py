import pytest

from cpt_dist.config import CptConfig, StageConfig
from cpt_dist.context_config import context_problems, context_rank_problems
from cpt_dist.data.stage_plan import StagePlan
from cpt_dist.errors import UserError
from cpt_dist.validation import validate

MODEL = {"num_attention_heads": 9, "num_key_value_heads": 3}


def made(size=1, method="all_gather", stage_size=None, seq_len=2048):
    config = CptConfig(stages=[StageConfig(name="long", seq_len=seq_len, context_parallel=stage_size)])
    config.engine.context_parallel, config.engine.context_parallel_method = size, method
    return config


@pytest.mark.parametrize(
    ("config", "world_size"),
    [(made(), 7), (made(4), 8), (made(1, stage_size=2), 6), (made(3, "ulysses"), 3), (made(5, "ring"), 5)],
)
def test_a_number_of_ranks_that_can_share_a_row_is_taken(config, world_size):
    assert context_problems(config) + context_rank_problems(config, world_size, MODEL) == []


@pytest.mark.parametrize(
    ("config", "world_size", "said"),
    [
        (made(4), 6, "engine.context_parallel: 4 doesn't divide 6 ranks; nearest: start 4 or 8 ranks, or set it to 3"),
        (made(2), 1, "engine.context_parallel: 2 doesn't divide 1 ranks; nearest: start 2 ranks, or set it to 1"),
        (
            made(stage_size=3),
            4,
            "stages.0 ('long').context_parallel: 3 doesn't divide 4 ranks; nearest: start 3 or 6 ranks, or set it to 2",
        ),
        (
            made(2, "ulysses"),
            6,
            "engine.context_parallel: ulysses deals out heads, and 2 doesn't divide 9 query and 3 key-value heads; "
            "nearest: set it to 1, or engine.context_parallel_method=all_gather",
        ),
    ],
)
def test_one_that_cannot_is_refused_with_the_nearest(config, world_size, said):
    assert context_rank_problems(config, world_size, MODEL) == [said]


def test_all_problems_are_said_at_once():
    config = made(0, "rings", stage_size=9, seq_len=4)
    with pytest.raises(UserError) as caught:
        validate(config)
    said = [problem for problem in caught.value.problems if "context_parallel" in problem]
    assert len(said) == 3
    assert "engine.context_parallel: 0 must be at least 1" in said[0]
    assert "did you mean 'ring'?" in said[1]
    assert "9 ranks cannot share rows of 4 tokens" in said[2]


@pytest.mark.parametrize("form", [("rope_parameters", "rope_type"), ("rope_scaling", "type")])
def test_a_rope_that_follows_the_longest_sequence_of_a_rank_is_refused(form):
    (said,) = context_rank_problems(made(2), 2, MODEL | {form[0]: {form[1]: "longrope"}})
    assert "RoPE 'longrope' follow the longest sequence that a rank sees" in said


def test_ranks_that_share_rows_need_fewer_of_them():
    plan = StagePlan("long", 8, 128, 2, {"a": 1.0})
    plan.check_world_size(4, 2)
    with pytest.raises(UserError, match="too few for 8 ranks of which 2 share a row; start at most 4 ranks"):
        plan.check_world_size(8, 2)
    with pytest.raises(UserError, match=r"start at most 2 ranks \(2, 1 share them evenly\)"):
        plan.check_world_size(4)
