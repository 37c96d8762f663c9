"""Promises of best-fit packing: nothing lost, nothing cut without need, rows full, the same on every host."""

import pickle
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.packing import fewest_rows
from cpt_dist.config import StageConfig
from cpt_dist.data import best_fit
from cpt_dist.data.batch import IGNORE_INDEX
from cpt_dist.data.batches import build_batch
from cpt_dist.data.best_fit import BestFit, best_fit_decreasing, pack_shard
from cpt_dist.data.loader import StepLoader
from cpt_dist.data.lookup import Place, readings_of_place, readings_of_steps
from cpt_dist.data.order import SampleOrder
from cpt_dist.data.packing import Row
from cpt_dist.data.plan_files import load_plan
from cpt_dist.data.subset_sum import subset_sum_fill
from cpt_dist.errors import UserError
from tests.data.test_loader import write_source
from tests.helpers.memory_sources import MemorySource

SHARDS = st.lists(st.lists(st.integers(0, 300), min_size=1, max_size=40), min_size=1, max_size=3)


def documents_of(lengths):
    ends = np.cumsum(lengths)
    return np.stack([ends - lengths, ends], axis=1).astype(np.int64)


def all_rows(plan):
    return [plan.row(index) for index in range(plan.num_rows)]


def skewed_lengths(num=20000):
    """Like the lengths of real text: log-normal around 1000 tokens, a few very long."""
    raw = np.exp(np.random.default_rng(5).normal(np.log(1000), 1.1, num))
    return np.minimum(raw, 200_000).astype(np.int64) + 1


def utilisation(lengths, seq_len):
    first_span, _, _ = pack_shard(documents_of(lengths), seq_len)
    return sum(lengths) / ((len(first_span) - 1) * seq_len)


@given(shards=SHARDS, seq_len=st.integers(1, 200), data=st.data())
@settings(max_examples=50, deadline=None)
def test_every_token_of_the_source_is_in_exactly_one_row_and_no_row_is_too_long(shards, seq_len, data):
    chosen = [sorted(data.draw(st.sets(st.integers(0, len(lengths) - 1)))) for lengths in shards]
    source = MemorySource("a", shards, selected=chosen)
    plan = BestFit.of(source, seq_len)
    seen = sorted((row.shard, at) for row in all_rows(plan) for span in row.spans for at in range(*span))
    offsets = [source.doc_offsets(shard).astype(int) for shard in range(len(shards))]
    expected = [(s, at) for s, numbers in enumerate(chosen) for n in numbers for at in range(*offsets[s][n : n + 2])]
    assert seen == expected
    assert all(0 < row.num_tokens <= seq_len for row in all_rows(plan))
    assert plan.num_tokens == len(expected)


@given(lengths=st.lists(st.integers(0, 500), min_size=1, max_size=60), seq_len=st.integers(1, 200))
@settings(max_examples=50, deadline=None)
def test_a_document_that_fits_is_never_cut(lengths, seq_len):
    _, start, stop = pack_shard(documents_of(lengths), seq_len)
    for begin, end in documents_of(lengths):
        pieces = int((np.maximum(start, begin) < np.minimum(stop, end)).sum())
        assert pieces == (end > begin) or end - begin > seq_len


@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=80), seed_share=st.sampled_from([0, 3, 50]))
@settings(max_examples=60, deadline=None)
def test_both_packings_place_every_item_and_overfill_no_bin(sizes, seed_share):
    items = np.array(sizes)
    bins, num_bins = subset_sum_fill(items, 50, seed_share) if seed_share else best_fit_decreasing(items, 50)
    loads = np.bincount(bins, weights=sizes, minlength=num_bins)
    assert len(loads) == num_bins
    assert loads.max() <= 50
    assert loads.min() > 0


@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=80))
@settings(max_examples=60, deadline=None)
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
    assert utilisation(skewed_lengths(), seq_len) >= 0.998


def test_lengths_that_defeat_best_fit_decreasing_are_packed_by_exact_sums():
    lengths = np.random.default_rng(1).integers(250, 550, 4000)
    alone = best_fit_decreasing(lengths, 2048)[1]
    assert lengths.sum() / (alone * 2048) < 0.98
    assert utilisation(lengths, 2048) > 0.998


def test_pieces_of_long_documents_fill_the_gaps_of_documents_that_leave_some():
    lengths = [*[600] * 100, *[9000] * 5]  # a row of 1000 holds one of 600, and no other document fits beside it
    uncut = 100 + 5 * 9
    first_span, start, stop = pack_shard(documents_of(lengths), 1000)
    assert len(first_span) - 1 <= 106 < uncut
    assert (stop - start).min() >= 8
    assert sum(lengths) == (stop - start).sum()


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=40), seq_len=st.integers(2, 50))
@settings(max_examples=60, deadline=None)
def test_no_packing_beats_the_bound_that_the_benchmark_prints(lengths, seq_len):
    assert len(pack_shard(documents_of(lengths), seq_len)[0]) - 1 >= fewest_rows(np.array(lengths), seq_len)


def test_the_bound_knows_documents_that_cannot_share_a_row():
    assert fewest_rows(np.array([6, 6, 6, 3, 3]), 10) == 3
    assert fewest_rows(np.array([6, 6, 6, 5, 5, 5]), 10) == 5


def test_a_plan_is_the_same_every_time():
    first_span, start, stop = pack_shard(documents_of([5, 9, 3, 12, 7, 1, 0, 8, 4]), 12)
    spans = [(int(a), int(b)) for a, b in zip(start, stop, strict=True)]
    assert [spans[a:b] for a, b in pairwise(first_span)] == GOLDEN


GOLDEN = [[(17, 29)], [(5, 17)], [(37, 49)], [(0, 5), (29, 36)], [(36, 37)]]


def test_documents_that_lie_side_by_side_in_a_row_are_one_span():
    assert Row(0, ((0, 7), (16, 18))) in all_rows(BestFit.of(MemorySource("a", [[4, 3, 9, 2]]), 9))


@given(shards=SHARDS, seq_len=st.integers(2, 120))
@settings(max_examples=15, deadline=None)
def test_each_token_with_a_predecessor_is_a_target_once_also_across_rows(shards, seq_len):
    source = MemorySource("a", shards)
    plan = BestFit.of(source, seq_len)
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


@given(shards=SHARDS, seq_len=st.integers(1, 120), data=st.data())
@settings(max_examples=60, deadline=None)
def test_rows_of_a_span_are_those_that_hold_its_tokens(shards, seq_len, data):
    plan = BestFit.of(MemorySource("a", shards), seq_len)
    shard = data.draw(st.integers(0, len(shards) - 1))
    start = data.draw(st.integers(0, sum(shards[shard])))
    stop = data.draw(st.integers(start, sum(shards[shard])))
    holding = [
        index
        for index, row in enumerate(all_rows(plan))
        if row.shard == shard and any(max(a, start) < min(b, stop) for a, b in row.spans)
    ]
    assert plan.rows_of(shard, start, stop).tolist() == holding


def test_rows_are_counted_shard_by_shard():
    plan = BestFit.of(MemorySource("a", [[5, 30, 3], [8], [0]]), 10)
    assert plan.rows_per_shard.tolist() == np.bincount([row.shard for row in all_rows(plan)], minlength=3).tolist()


def test_cuts_are_those_within_long_documents():
    source = MemorySource("a", [[5, 30, 3], [8]])
    assert BestFit.of(source, 10).count_cuts(source) == (0, 0, 2)


@pytest.mark.parametrize("index", [-1, 3])
def test_a_row_outside_the_plan_is_refused(index):
    with pytest.raises(IndexError, match="0 to 2"):
        BestFit.of(MemorySource("a", [[5, 5], [3]]), 8).row(index)


def test_a_plan_goes_to_another_process():
    plan = BestFit.of(MemorySource("a", [[5, 5], [3]]), 8)
    assert all_rows(pickle.loads(pickle.dumps(plan))) == all_rows(plan)


def test_a_plan_is_kept_beside_the_shards_and_a_damaged_or_stale_one_is_made_again(tmp_path, monkeypatch):
    source = write_source(tmp_path, "a", [5, 9, 3, 12, 7, 1])
    expected = all_rows(BestFit.of(source, 12))
    (file,) = (tmp_path / "a" / "plans").iterdir()
    with monkeypatch.context() as patched:
        patched.setattr(best_fit, "pack_shard", None)  # so that packing again would fail
        assert all_rows(BestFit.of(source, 12)) == expected
    content = bytearray(file.read_bytes())
    for place in (3, 20, len(content) - 2):
        damaged = content.copy()
        damaged[place] ^= 4
        file.write_bytes(damaged)
        assert load_plan(file) is None
        assert all_rows(BestFit.of(source, 12)) == expected
        assert file.read_bytes() == content
    source.fingerprint = "another content"
    BestFit.of(source, 12)
    assert len(list((tmp_path / "a" / "plans").iterdir())) == 2


def test_a_folder_that_cannot_be_written_keeps_the_plan_in_memory(tmp_path):
    source = write_source(tmp_path, "a", [5, 9, 3])
    (tmp_path / "a" / "plans").write_text("a file where the folder should be")
    assert BestFit.of(source, 12).num_rows == 2


def stage_of(packing, num_rows=8, name="main"):
    return StageConfig(
        name=name, tokens=str(12 * num_rows), seq_len=12, batch_tokens="12", mixture={"a": 1.0}, packing=packing
    )


def test_an_order_of_best_fit_rows_reads_each_once_an_epoch_and_is_another_order():
    source = MemorySource("a", [[5, 9, 3, 12, 7, 1], [8, 8]])
    num_rows = BestFit.of(source, 12).num_rows
    order = SampleOrder.from_sources([stage_of("best_fit", num_rows)], [source], 0)
    assert sorted(order.samples(0, num_rows).row.tolist()) == list(range(num_rows))
    concat = SampleOrder.from_sources([stage_of("concat", num_rows)], [source], 0)
    assert order.fingerprint != concat.fingerprint
    assert "packing" not in concat.identity["stages"][0]
    with pytest.raises(UserError, match="packing was concat and is best_fit-1"):
        order.check(concat.state(0), concat.identity)


def test_stages_of_two_packings_at_one_length_count_their_rows_apart():
    source = MemorySource("a", [[5, 9, 3, 12, 7, 1], [8, 8]])
    order = SampleOrder.from_sources([stage_of("concat", 3), stage_of("best_fit", 6, "fit")], [source], 0)
    assert sorted(order.samples(3, 6).row.tolist()) == list(range(6))
    assert order.epochs(9)["a"] == {12: 0.5, "best_fit-1:12": 1.0}


def test_the_loader_and_the_lookup_read_the_rows_of_the_stages_own_packing():
    source = MemorySource("a", [[5, 9, 3, 12, 7, 1]])
    order = SampleOrder.from_sources([stage_of("best_fit", 4)], [source], 0)
    steps = list(StepLoader(order, [source], stage=0))
    pieces = [int(length) for (batch,) in steps for length in batch.cu_seqlens.diff()]
    assert sorted(pieces) == [1, 3, 5, 7, 9, 12]
    readings = list(readings_of_steps(order, [source], 1, 4))
    assert [reading.num_tokens for reading in readings] == pieces
    place = Place(0, 0, 1, 5, 14)
    assert readings_of_place(order, [source], place) == [one for one in readings if one.place == place]
