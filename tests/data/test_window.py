import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpt_dist.config import StageConfig
from cpt_dist.data.order import SampleOrder
from cpt_dist.data.packing import ConcatAndChunk
from cpt_dist.data.window import WindowedPermutation
from cpt_dist.errors import UserError
from tests.helpers.memory_sources import MemorySource

ROWS = st.lists(st.integers(0, 40), min_size=1, max_size=30).filter(any)


def shard_of(rows_per_shard, rows):
    return np.searchsorted(np.cumsum(rows_per_shard), rows, side="right")


@settings(max_examples=200, deadline=None)
@given(rows=ROWS, key=st.integers(0, 2**128 - 1), window=st.integers(1, 40))
def test_every_row_comes_once(rows, key, window):
    images = WindowedPermutation(rows, key, window)(np.arange(sum(rows)))
    assert sorted(images.tolist()) == list(range(sum(rows)))


@settings(max_examples=200, deadline=None)
@given(rows=ROWS, key=st.integers(0, 2**128 - 1), window=st.integers(1, 40))
def test_the_inverse_finds_the_index_of_every_row(rows, key, window):
    permutation = WindowedPermutation(rows, key, window)
    index = np.arange(sum(rows))
    assert permutation.inverse(permutation(index)).tolist() == index.tolist()
    assert permutation(permutation.inverse(index)).tolist() == index.tolist()


@settings(max_examples=200, deadline=None)
@given(rows=ROWS, key=st.integers(0, 2**128 - 1), window=st.integers(1, 8))
def test_at_most_a_window_of_shards_is_begun_and_not_done(rows, key, window):
    permutation = WindowedPermutation(rows, key, window)
    left = np.array(rows)
    for shard in shard_of(rows, permutation(np.arange(sum(rows)))):
        left[shard] -= 1
        assert np.count_nonzero((left > 0) & (left < rows)) <= window


@settings(max_examples=100, deadline=None)
@given(rows=ROWS, key=st.integers(0, 2**128 - 1), window=st.integers(1, 8), data=st.data())
def test_any_index_alone_is_the_index_among_all(rows, key, window, data):
    together = WindowedPermutation(rows, key, window)(np.arange(sum(rows)))
    index = data.draw(st.integers(0, sum(rows) - 1))
    assert WindowedPermutation(rows, key, window)([index])[0] == together[index]


def test_another_key_is_another_order_of_shards_and_of_rows():
    rows = np.full(32, 50)
    first, second = (WindowedPermutation(rows, key, 4)(np.arange(1600)) for key in (1, 2))
    assert np.mean(first == second) < 0.01
    assert len(set(shard_of(rows, first[:200])) & set(shard_of(rows, second[:200]))) < 4


def test_rows_of_a_window_are_mixed():
    rows = np.full(8, 1000)
    shards = shard_of(rows, WindowedPermutation(rows, 3, 4)(np.arange(4000)))
    counts = [np.bincount(part)[np.unique(shards)] for part in np.split(shards, 4)]
    assert np.min(counts) > 200
    assert np.max(counts) < 300


@pytest.mark.parametrize(("rows", "window"), [([0, 0], 1), ([3], 0), ([], 2)])
def test_no_rows_or_no_window_is_refused(rows, window):
    with pytest.raises(ValueError, match="window"):
        WindowedPermutation(rows, 1, window)


@pytest.mark.parametrize("index", [-1, 5])
def test_an_index_outside_is_refused(index):
    permutation = WindowedPermutation([2, 3], 1, 1)
    for function in (permutation, permutation.inverse):
        with pytest.raises(IndexError):
            function([index])


def order(window, num_samples=120):
    sources = [MemorySource("a", [[40] * 5] * 6), MemorySource("b", [[40] * 5] * 3)]
    stage = StageConfig("main", str(num_samples * 8), 8, "32", {"a": 0.5, "b": 0.5})
    return SampleOrder.from_sources([stage], sources, 0, window_shards=window)


def test_a_windowed_order_reads_every_row_once_an_epoch_and_epochs_differ():
    windowed = order(1, num_samples=300)
    samples = windowed.samples(0, 300)
    b = samples.source == 1
    epochs = [samples.row[b & (samples.epoch == epoch)] for epoch in (0, 1)]
    for rows in epochs[:1]:
        assert sorted(rows) == list(range(ConcatAndChunk(np.array([200] * 3), 8).num_rows))
        assert np.all(np.diff(rows // 25)[np.arange(1, 75) % 25 != 0] == 0)
    assert not np.array_equal(epochs[0][: len(epochs[1])], epochs[1])


def test_a_windowed_order_finds_the_samples_that_read_a_row():
    windowed = order(2, num_samples=300)
    samples = windowed.samples(0, 300)
    for n in range(0, 300, 7):
        readings = windowed.readings(int(samples.source[n]), 8, int(samples.row[n]))
        assert (n, int(samples.epoch[n])) in readings


def test_the_window_is_part_of_the_order_only_where_there_is_one():
    plain, windowed = order(0), order(2)
    assert "shuffle_window_shards" not in plain.state(0)
    assert plain.fingerprint != windowed.fingerprint != order(3).fingerprint
    assert windowed.check(windowed.state(4)) == 4
    for saved, now, message in ((plain, windowed, "was 0 and is 2"), (windowed, plain, "was 2 and is 0")):
        with pytest.raises(UserError, match=f"shuffle_window_shards {message}; set it back"):
            now.check(saved.state(4))
