import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cpt_dist.engine.flat_shard import FlatShard, flat_boxes

shapes = st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple)


@st.composite
def ranges(draw):
    shape = draw(shapes)
    start, stop = sorted(draw(st.lists(st.integers(0, math.prod(shape)), min_size=2, max_size=2)))
    return shape, start, stop


@given(ranges())
def test_boxes_tile_the_flat_range_in_order(case):
    shape, start, stop = case
    flat = torch.arange(math.prod(shape)).view(shape)
    found = []
    for offsets, sizes, flat_start in flat_boxes(shape, start, stop):
        box = flat[tuple(slice(o, o + s) for o, s in zip(offsets, sizes, strict=True))]
        assert int(box.flatten()[0]) == flat_start
        found += box.flatten().tolist()
    assert found == list(range(start, stop))


@given(ranges())
def test_a_range_needs_at_most_2n_minus_1_boxes(case):
    shape, start, stop = case
    assert len(flat_boxes(shape, start, stop)) <= 2 * len(shape) - 1


@given(ranges())
def test_a_piece_handed_to_the_checkpoint_is_a_view_of_the_slice(case):
    shape, start, stop = case
    shard = FlatShard(torch.zeros(stop - start), shape, start)
    for item in shard.__create_write_items__("weight", shard):
        shard.__get_tensor_shard__(item.index).add_(1.0)
    assert shard.local.eq(1.0).all()


def test_a_range_beyond_the_tensor_is_refused():
    with pytest.raises(ValueError, match="leaves a tensor"):
        flat_boxes((2, 3), 4, 7)
