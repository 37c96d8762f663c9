"""Promises of concat-and-chunk and of the document pieces."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpt_dist.data.packing import ConcatAndChunk, Row, document_pieces
from cpt_dist.data.plans import make_plan
from tests.helpers.memory_sources import MemorySource

SHARDS = st.lists(st.integers(0, 60), min_size=1, max_size=6)


@given(shards=SHARDS, seq_len=st.integers(1, 25))
@settings(max_examples=60, deadline=None)
def test_every_token_is_in_exactly_one_row(shards, seq_len):
    plan = ConcatAndChunk(np.array(shards), seq_len)
    rows = [plan.row(index) for index in range(plan.num_rows)]
    seen = [(row.shard, place) for row in rows for start, stop in row.spans for place in range(start, stop)]
    assert seen == [(shard, place) for shard, num_tokens in enumerate(shards) for place in range(num_tokens)]
    assert plan.num_tokens == sum(row.num_tokens for row in rows) == sum(shards)


@given(shards=SHARDS, seq_len=st.integers(1, 25))
@settings(max_examples=40, deadline=None)
def test_only_the_last_row_of_a_shard_is_short_and_none_is_empty(shards, seq_len):
    plan = ConcatAndChunk(np.array(shards), seq_len)
    for index in range(plan.num_rows):
        row = plan.row(index)
        ends_its_shard = row.spans[-1][1] == shards[row.shard]
        assert row.num_tokens == seq_len or (ends_its_shard and 0 < row.num_tokens < seq_len)


@st.composite
def views(draw):
    """A source that holds some of the documents of its shards, and the places of their tokens."""
    shards = draw(st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=8), min_size=1, max_size=3))
    chosen = [sorted(draw(st.sets(st.integers(0, len(lengths) - 1)))) for lengths in shards]
    source = MemorySource("part", shards, selected=chosen)
    places = []
    for shard, documents in enumerate(chosen):
        offsets = source.doc_offsets(shard).astype(int)
        places += [(shard, place) for number in documents for place in range(*offsets[number : number + 2])]
    return source, places


@given(view=views(), seq_len=st.integers(1, 10))
@settings(max_examples=80, deadline=None)
def test_a_part_of_the_documents_is_laid_end_to_end_and_cut(view, seq_len):
    source, places = view
    plan = make_plan(source, seq_len)
    rows = [plan.row(index) for index in range(plan.num_rows)]
    assert [(row.shard, at) for row in rows for span in row.spans for at in range(*span)] == places
    assert plan.num_tokens == len(places)
    last_of_shard = {row.shard: index for index, row in enumerate(rows)}
    assert all(row.num_tokens == seq_len for index, row in enumerate(rows) if last_of_shard[row.shard] != index)


@given(view=views(), seq_len=st.integers(1, 10), data=st.data())
@settings(max_examples=80, deadline=None)
def test_rows_of_a_span_hold_its_tokens_also_where_documents_between_are_left_out(view, seq_len, data):
    source, _ = view
    plan = make_plan(source, seq_len)
    shard = data.draw(st.integers(0, len(source.shard_tokens) - 1))
    start = data.draw(st.integers(0, int(source.shard_tokens[shard])))
    stop = data.draw(st.integers(start, int(source.shard_tokens[shard])))
    rows = {index: plan.row(index) for index in range(plan.num_rows)}
    holding = [
        index
        for index, row in rows.items()
        if row.shard == shard and any(max(a, start) < min(b, stop) for a, b in row.spans)
    ]
    assert plan.rows_of(shard, start, stop).tolist() == holding


def test_a_plan_is_made_once_for_each_source_and_length():
    source = MemorySource("a", [[5, 6]])
    assert make_plan(source, 4) is make_plan(source, 4)
    assert make_plan(source, 5).num_rows == 3


def test_another_sequence_length_is_another_plan_of_the_same_tokens():
    short, long = (ConcatAndChunk(np.array([100, 30]), seq_len) for seq_len in (10, 64))
    assert (short.num_rows, long.num_rows) == (13, 3)
    assert long.row(2) == Row(1, ((0, 30),))


@pytest.mark.parametrize("index", [-1, 4])
def test_a_row_outside_the_plan_is_refused(index):
    with pytest.raises(IndexError, match="0 to 3"):
        ConcatAndChunk(np.array([8, 7]), 4).row(index)


@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=12), data=st.data())
@settings(max_examples=60, deadline=None)
def test_pieces_cover_a_span_and_respect_recorded_boundaries(lengths, data):
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.uint64)
    total = int(offsets[-1])
    start = data.draw(st.integers(0, max(0, total - 1)))
    stop = data.draw(st.integers(min(start + 1, total), total))
    if start == stop:
        return
    first, bounds = document_pieces(offsets, start, stop)
    assert (bounds[0], bounds[-1]) == (start, stop)
    for number, (begin, end) in enumerate(pairwise(bounds)):
        if end > begin:
            assert offsets[first + number] <= begin
            assert end <= offsets[first + number + 1]


def test_offsets_beyond_what_doubles_hold_are_found():
    far = 2**53
    offsets = np.array([0, far + 1, far + 3], dtype=np.uint64)
    first, bounds = document_pieces(offsets, far, far + 1)
    assert (first, bounds.tolist()) == (0, [far, far + 1])


def test_documents_that_are_neighbours_in_the_shard_are_one_span():
    assert make_plan(MemorySource("a", [[5, 4, 6, 2]], selected=[[0, 1, 3]]), 16).row(0) == Row(0, ((0, 9), (15, 17)))


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
@pytest.mark.parametrize("selected", [None, [[0, 2], [1]]])
def test_rows_looked_up_together_are_those_looked_up_alone(packing, selected):
    plan = make_plan(MemorySource("a", [[5, 9, 3], [17, 4]], selected=selected), 8, packing)
    index = np.array([plan.num_rows - 1, 0, *range(plan.num_rows)])
    assert plan.rows(index) == [plan.row(one) for one in index.tolist()]
    with pytest.raises(IndexError):
        plan.rows(np.array([0, plan.num_rows]))
