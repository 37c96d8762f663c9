"""Promises of best-fit packing: nothing lost, nothing cut without need, rows full, the same on every host."""

import pickle
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpt_dist.config import StageConfig
from cpt_dist.data import best_fit
from cpt_dist.data.batches import IGNORE_INDEX, build_batch
from cpt_dist.data.best_fit import BestFit, best_fit_decreasing, pack_shard
from cpt_dist.data.exact_fill import exact_fill
from cpt_dist.data.loader import StepLoader
from cpt_dist.data.order import SampleOrder
from cpt_dist.data.packing import Row
from cpt_dist.data.plan_files import load_plan
from cpt_dist.errors import UserError
from tests.data.test_loader import write_source
from tests.helpers.memory_sources import MemorySource

SHARDS = st.lists(st.lists(st.integers(0, 70), min_size=1, max_size=40), min_size=1, max_size=3)


def offsets_of(lengths):
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.uint64)


def skewed_lengths(num=20000):
    """Like the lengths of real text: log-normal around 1000 tokens, a few very long."""
    raw = np.exp(np.random.default_rng(5).normal(np.log(1000), 1.1, num))
    return np.minimum(raw, 200_000).astype(np.int64) + 1


@given(shards=SHARDS, seq_len=st.integers(1, 80))
@settings(max_examples=80, deadline=None)
def test_every_token_is_in_exactly_one_row_and_no_row_is_too_long(shards, seq_len):
    source = MemorySource("a", shards)
    plan = BestFit(source, seq_len)
    rows = [plan.row(index) for index in range(plan.num_rows)]
    seen = sorted((row.shard, place) for row in rows for start, stop in row.spans for place in range(start, stop))
    assert seen == [(shard, place) for shard, lengths in enumerate(shards) for place in range(sum(lengths))]
    assert all(0 < row.num_tokens <= seq_len for row in rows)
    assert plan.num_tokens == sum(row.num_tokens for row in rows)


@given(lengths=st.lists(st.integers(0, 70), min_size=1, max_size=60), seq_len=st.integers(1, 40))
@settings(max_examples=80, deadline=None)
def test_a_document_that_fits_is_never_cut_and_a_longer_one_only_where_a_row_is_full(lengths, seq_len):
    rows = pack_shard(offsets_of(lengths), seq_len)
    pieces = dict.fromkeys(range(len(lengths)), 0)
    bounds = offsets_of(lengths).astype(np.int64)
    for start, stop in zip(rows.start, rows.stop, strict=True):
        for number in range(len(lengths)):
            pieces[number] += max(start, bounds[number]) < min(stop, bounds[number + 1])
    assert pieces == {number: -(-length // seq_len) for number, length in enumerate(lengths)}


@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=80), pack=st.sampled_from([0, 1]))
@settings(max_examples=120, deadline=None)
def test_both_packings_place_every_item_and_overfill_no_bin(sizes, pack):
    bins, num_bins = (best_fit_decreasing, exact_fill)[pack](np.array(sizes), 50)
    loads = np.bincount(bins, weights=sizes, minlength=num_bins)
    assert len(loads) == num_bins
    assert loads.max() <= 50
    assert loads.min() > 0


@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=80))
@settings(max_examples=120, deadline=None)
def test_placing_groups_at_once_is_best_fit_decreasing_one_by_one(sizes):
    rooms = []
    for size in sorted(sizes, reverse=True):
        fitting = [room for room in rooms if room >= size]
        if fitting:
            rooms.remove(min(fitting))
        rooms.append((min(fitting) if fitting else 50) - size)
    bins, num_bins = best_fit_decreasing(np.array(sizes), 50)
    loads = np.bincount(bins, weights=sizes, minlength=num_bins).astype(int)
    assert sorted(50 - loads) == sorted(rooms)


@pytest.mark.parametrize("seq_len", [1024, 2048, 4096, 8192, 32768])
def test_rows_of_documents_with_the_lengths_of_text_are_full(seq_len):
    lengths = skewed_lengths()
    rows = pack_shard(offsets_of(lengths), seq_len)
    assert rows.num_rows * seq_len * 0.998 <= lengths.sum()


def test_lengths_that_defeat_best_fit_decreasing_are_packed_by_exact_pairs():
    lengths = np.random.default_rng(1).integers(500, 1500, 8000)
    alone = best_fit_decreasing(lengths, 4096)[1]
    rows = pack_shard(offsets_of(lengths), 4096)
    assert lengths.sum() / (alone * 4096) < 0.98
    assert lengths.sum() / (rows.num_rows * 4096) > 0.995


def test_a_plan_is_the_same_every_time():
    rows = pack_shard(offsets_of([5, 9, 3, 12, 7, 1, 0, 8, 4]), 12)
    spans = [list(zip(rows.start[a:b], rows.stop[a:b], strict=True)) for a, b in pairwise(rows.first_span)]
    assert [[(int(a), int(b)) for a, b in row] for row in spans] == GOLDEN


GOLDEN = [[(17, 29)], [(5, 17)], [(37, 49)], [(0, 5), (29, 36)], [(36, 37)]]


def test_documents_that_lie_side_by_side_in_a_row_are_one_span():
    plan = BestFit(MemorySource("a", [[4, 3, 9, 2]]), 9)
    assert Row(0, ((0, 7), (16, 18))) in [plan.row(index) for index in range(plan.num_rows)]


@given(shards=SHARDS, seq_len=st.integers(2, 20))
@settings(max_examples=60, deadline=None)
def test_each_token_with_a_predecessor_is_a_target_once_also_across_rows(shards, seq_len):
    source = MemorySource("a", shards)
    plan = BestFit(source, seq_len)
    rows = np.arange(plan.num_rows)
    if not rows.size:
        return
    batch = build_batch([source], [plan], np.zeros_like(rows), rows, rows)
    targets = sorted(batch.labels[batch.labels != IGNORE_INDEX].tolist())
    expected = []
    for shard, lengths in enumerate(shards):
        offsets = source.doc_offsets(shard)
        for number in range(len(lengths)):
            if lengths[number]:
                expected += source.tokens(shard, int(offsets[number]) + 1, int(offsets[number + 1])).tolist()
    assert targets == sorted(expected)


@pytest.mark.parametrize("index", [-1, 3])
def test_a_row_outside_the_plan_is_refused(index):
    with pytest.raises(IndexError, match="0 to 2"):
        BestFit(MemorySource("a", [[5, 5], [3]]), 8).row(index)


def test_a_plan_goes_to_another_process():
    plan = BestFit(MemorySource("a", [[5, 5], [3]]), 8)
    copy = pickle.loads(pickle.dumps(plan))
    assert [copy.row(index) for index in range(copy.num_rows)] == [plan.row(index) for index in range(plan.num_rows)]


def test_a_plan_is_kept_beside_the_shards_and_a_damaged_one_is_made_again(tmp_path, monkeypatch):
    source = write_source(tmp_path, "a", [5, 9, 3, 12, 7, 1])
    expected = all_rows(BestFit(source, 12, cache=True))
    (file,) = (tmp_path / "a" / "plans").iterdir()

    def unused(*_):
        raise AssertionError("packed again")

    with monkeypatch.context() as patched:
        patched.setattr(best_fit, "pack_shard", unused)
        assert all_rows(BestFit(source, 12, cache=True)) == expected
    content = bytearray(file.read_bytes())
    for place in (3, 20, len(content) - 2):
        damaged = content.copy()
        damaged[place] ^= 4
        file.write_bytes(damaged)
        assert load_plan(file) is None
        assert all_rows(BestFit(source, 12, cache=True)) == expected
        assert file.read_bytes() == content


def test_a_folder_that_cannot_be_written_keeps_the_plan_in_memory(tmp_path):
    source = write_source(tmp_path, "a", [5, 9, 3])
    (tmp_path / "a" / "plans").write_text("a file where the folder should be")
    assert all_rows(BestFit(source, 12, cache=True)) == all_rows(BestFit(source, 12))


def test_an_order_of_best_fit_rows_reads_each_once_an_epoch_and_is_another_order():
    source = MemorySource("a", [[5, 9, 3, 12, 7, 1], [8, 8]])
    num_rows = BestFit(source, 12).num_rows
    stage = StageConfig(tokens=str(12 * num_rows), seq_len=12, batch_tokens="12", mixture={"a": 1.0})
    order = SampleOrder.from_sources([stage], [source], 0, packing="best_fit")
    assert sorted(order.samples(0, num_rows).row.tolist()) == list(range(num_rows))
    concat = SampleOrder.from_sources([stage], [source], 0)
    assert order.fingerprint != concat.fingerprint
    assert "packing" not in concat.state(0)["stages"][0]
    with pytest.raises(UserError, match="packing was concat and is best_fit"):
        order.check(concat.state(0))


def test_the_loader_reads_the_rows_of_the_stages_own_packing():
    source = MemorySource("a", [[5, 9, 3, 12, 7, 1]])
    stage = StageConfig(tokens="48", seq_len=12, batch_tokens="12", mixture={"a": 1.0}, packing="best_fit")
    order = SampleOrder.from_sources([stage], [source], 0)
    steps = list(StepLoader(order, [source], stage=0))
    pieces = sorted(int(length) for (batch,) in steps for length in batch.cu_seqlens.diff())
    assert pieces == [1, 3, 5, 7, 9, 12]


def all_rows(plan):
    return [plan.row(index) for index in range(plan.num_rows)]
