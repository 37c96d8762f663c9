"""Promises of take-downs and loss spans in batches: what goes is exactly what was named, and nothing else moves."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cpt_dist.config import POSITIONS, StageConfig
from cpt_dist.data.batches import build_batch
from cpt_dist.data.loader import StepLoader
from cpt_dist.data.masking import TakenDown, unlabelled_runs
from cpt_dist.data.order import SampleOrder
from cpt_dist.data.packing import Row
from cpt_dist.data.take_down import TakeDown
from tests.helpers.memory_sources import MemorySource


class Rows:
    """A plan of given rows."""

    def __init__(self, rows):
        self.rows = rows

    def row(self, index):
        return self.rows[index]


LENGTHS = st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(sum)


@st.composite
def rows_of(draw, lengths):
    """Rows of one or more spans (as best-fit makes them) that lie in order and apart within the shard."""
    total = sum(lengths)
    cuts = sorted(draw(st.sets(st.integers(0, total), min_size=2, max_size=7)))
    spans = [span for span in itertools.pairwise(cuts) if draw(st.booleans()) or span == (cuts[0], cuts[1])]
    split = draw(st.integers(1, len(spans)))
    return [Row(0, tuple(part)) for part in (spans[:split], spans[split:]) if part]


def tokens_of(batch):
    """(document, token, label, position) of each token, by the piece it is in."""
    bounds = batch.cu_seqlens.tolist()
    pieces = [batch.doc_ids[i, 0].item() for i in range(len(bounds) - 1) for _ in range(bounds[i], bounds[i + 1])]
    columns = (batch.input_ids.tolist(), batch.labels.tolist(), batch.position_ids.tolist())
    return list(zip(pieces, *columns, strict=True))


def batch_of(source, rows, sample_ids, taken=None, positions="restart"):
    places = np.arange(len(rows))
    return build_batch([source], [Rows(rows)], places * 0, places, np.array(sample_ids), taken, positions)


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_the_pieces_of_a_document_taken_down_go_and_all_others_stay_as_they_are(data):
    lengths = data.draw(LENGTHS)
    source = MemorySource("a", [lengths], first_document=1)
    rows = data.draw(rows_of(lengths))
    starts = data.draw(st.dictionaries(st.integers(1, len(lengths)), st.integers(0, len(rows)), min_size=1))
    taken = TakenDown(TakeDown(n, frozenset([bytes([number] * 16)])) for number, n in starts.items())
    positions = data.draw(st.sampled_from(POSITIONS))
    whole, left = (batch_of(source, rows, range(len(rows)), one, positions) for one in (None, taken))
    of_row = [n for n, row in enumerate(rows) for _ in range(row.num_tokens)]
    expected = [
        token
        for token, n in zip(tokens_of(whole), of_row, strict=True)
        if not (token[0] in starts and starts[token[0]] <= n)
    ]
    if expected:
        assert tokens_of(left) == expected
        assert not left.is_filler
    else:
        assert left.is_filler
        assert left.num_target_tokens == 0
    assert left.sample_ids.tolist() == whole.sample_ids.tolist()
    assert left.row_sources.tolist() == whole.row_sources.tolist()
    assert int(left.skipped_tokens.sum()) == whole.num_tokens - len(expected)
    assert (left.skipped_tokens >= left.skipped_pieces).all()
    num_pieces = 0 if left.is_filler else len(left.doc_ids)
    assert int(left.skipped_pieces.sum()) == len(whole.doc_ids) - num_pieces


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_a_label_stays_where_the_token_that_it_names_is_a_target(data):
    lengths = data.draw(LENGTHS)
    source = MemorySource("a", [lengths], first_document=1)
    rows = data.draw(rows_of(lengths))
    is_target = data.draw(st.lists(st.booleans(), min_size=sum(lengths), max_size=sum(lengths)))
    edges = np.flatnonzero(np.diff([0, *is_target, 0]))
    whole = batch_of(source, rows, range(len(rows)))
    source.targets = [[(int(a), int(b)) for a, b in edges.reshape(-1, 2)]]
    masked = batch_of(source, rows, range(len(rows)))
    places = [t for row in rows for start, stop in row.spans for t in range(start, stop)]
    following = [t + 1 < len(is_target) and is_target[t + 1] for t in places]
    expected = [label if keep else -100 for label, keep in zip(whole.labels.tolist(), following, strict=True)]
    assert masked.labels.tolist() == expected
    assert torch.equal(masked.input_ids, whole.input_ids)


def test_spans_that_touch_are_one_and_those_beyond_the_labels_do_nothing():
    spans = np.array([[0, 3], [12, 13], [13, 14], [40, 50]], dtype=np.uint64)
    assert unlabelled_runs(spans, 10, 14).T.tolist() == [[0, 1], [3, 4]]


def test_an_id_that_agrees_with_another_in_half_takes_down_its_own_document_only():
    source = MemorySource("a", [[3, 3]], first_document=1)
    source._ids[0][1, :8] = source._ids[0][0, :8]
    taken = TakenDown([TakeDown(0, frozenset([bytes(source._ids[0][1])]))])
    assert taken.in_shard(source, 0).tolist() == [[3, 6, 0]]


@pytest.fixture
def sources():
    return [MemorySource("a", [[5, 9, 30], [17]], first_document=1), MemorySource("b", [[40, 3]], first_document=20)]


def order_over(sources, ledger=()):
    shape = {"seq_len": 8, "batch_tokens": "128"}
    stage = StageConfig(tokens="512", mixture={"a": 1.0, "b": 2.0}, **shape)
    return SampleOrder.from_sources([stage], sources, seed=4, ledger=ledger)


def rows_by_sample(steps):
    """Sample -> (tokens, labels, positions) of its row; micro-batches of one row."""
    return {
        int(b.sample_ids[0]): () if b.is_filler else (b.input_ids.tolist(), b.labels.tolist(), b.position_ids.tolist())
        for step in steps
        for b in step
        if len(b.sample_ids)
    }


@pytest.mark.parametrize("world_size", range(1, 17))
def test_global_batches_are_the_same_on_1_to_16_ranks_with_take_downs_and_loss_spans(sources, world_size):
    sources[0].targets = [[(2, 7), (15, 30)], [(0, 9)]]
    ledger = [TakeDown(32, frozenset([bytes([20] * 16), bytes([2] * 16)]))]
    order = order_over(sources, ledger)
    alone = rows_by_sample(StepLoader(order, sources, stage=0))
    parts = [list(StepLoader(order, sources, stage=0, rank=rank, world_size=world_size)) for rank in range(world_size)]
    together = {}
    for rank in parts:
        together |= rows_by_sample(rank)
    assert together == alone
    assert sorted(alone) == list(range(64))
    assert {len(step) for rank in parts for step in rank} == {-(-16 // world_size)}
    untouched = rows_by_sample(StepLoader(order_over(sources), sources, stage=0))
    assert [alone[n] for n in range(32)] == [untouched[n] for n in range(32)]
    assert () in [alone[n] for n in range(32, 64)]  # rows of nothing but the longest document


@pytest.mark.parametrize("micro_batch", [1, 3, 16])
def test_a_micro_batch_of_nothing_but_what_was_taken_down_keeps_its_samples(sources, micro_batch):
    everything = frozenset(bytes([n] * 16) for n in range(1, 40))
    order = order_over(sources, [TakeDown(16, everything)])
    first, *rest = StepLoader(order, sources, stage=0, micro_batch=micro_batch)
    assert not any(batch.is_filler for batch in first)
    for step in rest:
        assert all(batch.is_filler and batch.num_target_tokens == 0 for batch in step)
        assert sum(len(batch.sample_ids) for batch in step) == 16
        assert sum(int(batch.skipped_tokens.sum()) for batch in step) > 0
