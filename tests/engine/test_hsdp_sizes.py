import pytest

from cpt_dist.config import CptConfig
from cpt_dist.errors import UserError
from cpt_dist.shard_size import check_shard_size
from cpt_dist.validation import validate


@pytest.mark.parametrize(("shard_size", "world_size"), [(0, 7), (4, 8), (8, 8), (1, 3)])
def test_a_shard_size_that_divides_the_ranks_is_taken(shard_size, world_size):
    check_shard_size(shard_size, world_size)


@pytest.mark.parametrize(
    ("shard_size", "world_size", "fix"),
    [(4, 6, "start 4 or 8 ranks, or set it to 3"), (8, 6, "start 8 ranks, or set it to 6")],
)
def test_one_that_does_not_is_refused_with_the_nearest_sizes(shard_size, world_size, fix):
    with pytest.raises(UserError, match=fix):
        check_shard_size(shard_size, world_size)


def test_zero_has_no_shard_size():
    config = CptConfig()
    config.engine.name, config.engine.shard_size = "zero", 2
    with pytest.raises(UserError) as caught:
        validate(config)
    assert any("engine.shard_size: 2 is read by engine=fsdp only" in problem for problem in caught.value.problems)
