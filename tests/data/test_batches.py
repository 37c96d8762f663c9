"""Promises of the batches: no padding, labels along recorded documents, every token a target once."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cpt_dist.data.batch import IGNORE_INDEX
from cpt_dist.data.batches import build_batch, filler_batch, pack_documents
from cpt_dist.data.packing import ConcatAndChunk, Row
from cpt_dist.data.plans import make_plan
from tests.helpers.memory_sources import MemorySource

SHARDS = st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=6), min_size=1, max_size=3)


def batch_of_all_rows(source, seq_len):
    plan = ConcatAndChunk(source.shard_tokens, seq_len)
    rows = np.arange(plan.num_rows)
    return build_batch([source], [plan], np.zeros_like(rows), rows, rows + 1000)


@given(shards=SHARDS, seq_len=st.integers(2, 20))
@settings(max_examples=60, deadline=None)
def test_every_token_with_a_predecessor_in_its_document_is_a_target_exactly_once(shards, seq_len):
    source = MemorySource("a", shards)
    batch = batch_of_all_rows(source, seq_len)
    targets = sorted(batch.labels[batch.labels != IGNORE_INDEX].tolist())
    expected = []
    for shard, lengths in enumerate(shards):
        offsets = source.doc_offsets(shard)
        for number in range(len(lengths)):
            expected += source.tokens(shard, int(offsets[number]) + 1, int(offsets[number + 1])).tolist()
    assert targets == sorted(expected)  # so the first token of a document is never one


@given(shards=SHARDS, seq_len=st.integers(2, 20))
@settings(max_examples=40, deadline=None)
def test_a_label_is_the_next_token_of_the_same_document(shards, seq_len):
    batch = batch_of_all_rows(MemorySource("a", shards), seq_len)
    has = batch.labels != IGNORE_INDEX
    # In the fake's tokens the next one of a document is one more, and documents begin at multiples of 100.
    assert torch.equal(batch.labels[has], batch.input_ids[has] + 1)
    assert not (batch.labels % 100 == 0).logical_and(has).any()


@given(shards=SHARDS, seq_len=st.integers(2, 20))
@settings(max_examples=40, deadline=None)
def test_positions_restart_and_bounds_fall_where_a_document_or_a_row_begins(shards, seq_len):
    batch = batch_of_all_rows(MemorySource("a", shards), seq_len)
    bounds = batch.cu_seqlens.tolist()
    assert (bounds[0], bounds[-1]) == (0, batch.num_tokens)
    assert len(batch.doc_ids) == len(bounds) - 1
    for number, (begin, end) in enumerate(pairwise(bounds)):
        assert end > begin
        assert batch.position_ids[begin:end].tolist() == list(range(end - begin))
        assert set((batch.input_ids[begin:end] // 100).tolist()) == {int(batch.doc_ids[number, 0])}


def test_a_batch_holds_rows_of_several_sources_end_to_end_with_their_ids():
    sources = [MemorySource("a", [[5, 6]]), MemorySource("b", [[4], [7]], first_document=50)]
    plans = [ConcatAndChunk(source.shard_tokens, 8) for source in sources]
    batch = build_batch(sources, plans, np.array([1, 0, 1]), np.array([1, 0, 0]), np.array([30, 10, 20]))
    assert batch.source_ids.tolist() == [1] * 7 + [0] * 8 + [1] * 4
    assert batch.cu_seqlens.tolist() == [0, 7, 12, 15, 19]
    assert batch.doc_ids[:, 0].tolist() == [51, 0, 1, 50]
    assert batch.sample_ids.tolist() == [30, 10, 20]
    assert batch.row_sources.tolist() == [1, 0, 1]
    assert batch.input_ids[7:15].tolist() == [0, 1, 2, 3, 4, 100, 101, 102]
    assert batch.labels[7:15].tolist() == [1, 2, 3, 4, -100, 101, 102, 103]
    assert batch.num_target_tokens == 6 + 4 + 3 + 3


def test_positions_can_run_on_to_the_end_of_a_row():
    source = MemorySource("a", [[5, 6, 3]])
    plan = ConcatAndChunk(source.shard_tokens, 8)
    rows = np.arange(2)
    batch, other = (
        build_batch([source], [plan], rows * 0, rows, rows, positions=how) for how in ("continue", "restart")
    )
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5]
    assert other.position_ids.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 0, 1, 2, 0, 1, 2]
    assert batch.cu_seqlens.tolist() == other.cu_seqlens.tolist() == [0, 5, 8, 11, 14]
    assert torch.equal(batch.labels, other.labels)


def test_a_batch_has_the_types_that_the_model_takes():
    batch = batch_of_all_rows(MemorySource("a", [[5, 6]]), 4)
    wide = [batch.input_ids, batch.labels, batch.position_ids, batch.source_ids, batch.sample_ids]
    assert {tensor.dtype for tensor in wide} == {torch.int64}
    assert (batch.cu_seqlens.dtype, batch.doc_ids.dtype) == (torch.int32, torch.uint8)
    assert batch.doc_ids.shape == (len(batch.cu_seqlens) - 1, 16)
    moved = batch.to("meta")
    assert moved.labels.device.type == moved.position_ids.device.type == "meta"
    assert moved.sample_ids.device.type == "meta"


def test_a_document_without_tokens_leaves_no_piece():
    batch = batch_of_all_rows(MemorySource("a", [[3, 0, 4]]), 16)
    assert batch.cu_seqlens.tolist() == [0, 3, 7]
    assert batch.doc_ids[:, 0].tolist() == [0, 2]


def test_a_row_of_several_spans_is_read_span_by_span():
    class TwoSpans:
        num_rows, num_tokens = 1, 7

        def row(self, index):
            return Row(0, ((10, 14), (0, 3)))

    source = MemorySource("a", [[5, 12]])
    batch = build_batch([source], [TwoSpans()], np.array([0]), np.array([0]), np.array([0]))
    assert batch.input_ids.tolist() == [105, 106, 107, 108, 0, 1, 2]
    assert batch.labels.tolist() == [106, 107, 108, 109, 1, 2, 3]
    assert batch.cu_seqlens.tolist() == [0, 4, 7]


def test_a_document_that_is_left_out_gives_neither_a_token_nor_a_label():
    source = MemorySource("a", [[5, 4, 6, 3]], selected=[[0, 2]])
    plan = make_plan(source, 8)
    batch = build_batch([source], [plan], np.array([0, 0]), np.array([0, 1]), np.array([0, 1]))
    assert batch.input_ids.tolist() == [0, 1, 2, 3, 4, 200, 201, 202, 203, 204, 205]
    assert batch.labels.tolist() == [1, 2, 3, 4, -100, 201, 202, 203, 204, 205, -100]
    assert batch.cu_seqlens.tolist() == [0, 5, 8, 11]
    assert batch.doc_ids[:, 0].tolist() == [0, 2, 2]


def test_tokens_beyond_16_bits_and_signs_survive():
    source = MemorySource("a", [[4]])
    source._tokens[0] = np.array([1, 2**32 - 1, 2**31, 5], dtype=np.uint32)
    batch = batch_of_all_rows(source, 3)
    assert batch.input_ids.tolist() == [1, 2**32 - 1, 2**31, 5]
    assert batch.labels.tolist() == [2**32 - 1, 2**31, 5, -100]


def test_a_filler_has_tokens_but_no_targets_and_no_samples():
    filler = filler_batch()
    assert filler.num_tokens > 0
    assert filler.num_target_tokens == 0
    assert filler.sample_ids.tolist() == []
    assert filler.cu_seqlens.tolist() == [0, filler.num_tokens]


def test_packed_documents_are_a_piece_each_with_shifted_labels():
    batch = pack_documents([np.array([7, 8, 9], dtype=np.uint16), [4], [5, 6]])
    assert batch.input_ids.tolist() == [7, 8, 9, 4, 5, 6]
    assert batch.labels.tolist() == [8, 9, -100, -100, 6, -100]
    assert batch.position_ids.tolist() == [0, 1, 2, 0, 0, 1]
    assert batch.cu_seqlens.tolist() == [0, 3, 4, 6]
    assert batch.sample_ids.tolist() == [0, 1, 2]


@pytest.mark.parametrize("documents", [[], [[1, 2], []]])
def test_nothing_to_pack_is_refused(documents):
    with pytest.raises(ValueError, match="at least one document"):
        pack_documents(documents)


def test_a_batch_without_rows_is_refused():
    empty = np.empty(0, dtype=np.int64)
    with pytest.raises(ValueError, match="filler_batch"):
        build_batch([], [], empty, empty, empty)
