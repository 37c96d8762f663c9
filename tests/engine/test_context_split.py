"""Every pair of tokens that may attend to each other is computed once, and no other, whatever way a row is shared."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cpt_dist.engine.context.ring import pieces
from cpt_dist.engine.context.split import split_sequence, work_before

borders_of = st.lists(st.integers(1, 40), min_size=1, max_size=12).map(
    lambda lengths: [0, *np.cumsum(lengths).tolist()]
)
ranks = st.sampled_from([2, 3, 4])
windows = st.sampled_from([None, 1, 5])


def allowed(borders, window):
    """bool [queries, keys]: same document, not later, within the window."""
    places = np.arange(borders[-1])
    document = np.searchsorted(borders, places, side="right")
    back = places[:, None] - places[None]
    return (document[:, None] == document[None]) & (back >= 0) & ((back < window) if window else True)


def seen_in_block(block, num_queries):
    """bool [queries, keys] of one block of a ring."""
    back = np.arange(num_queries)[:, None] + block.distance - np.arange(block.num_keys)[None]
    seen = allowed(block.borders, None) if block.causal else np.ones_like(back, dtype=bool)
    return seen & ((back < block.window) if block.window else True)


@given(borders_of, ranks, st.booleans())
def test_the_ranks_have_equal_parts_that_are_every_token_once(borders, num_ranks, whole_parts):
    split = split_sequence(borders, num_ranks, whole_parts=whole_parts)
    assert sorted(split.order().tolist()) == list(range(split.borders[-1]))
    assert {sum(stop - start for start, stop in part) for part in split.parts} == {split.part_tokens}
    assert split.borders[: len(borders)] == borders
    assert split.borders[-1] - borders[-1] < (1 if whole_parts else 2) * num_ranks
    if whole_parts:
        assert split.order().tolist() == list(range(split.borders[-1]))


@given(borders_of, ranks, windows)
def test_a_ring_meets_each_pair_within_a_document_once_and_no_other(borders, num_ranks, window):
    split = split_sequence(borders, num_ranks, (window,))
    met = np.zeros((split.borders[-1],) * 2, dtype=int)
    for rank in range(num_ranks):
        for other in range(num_ranks):
            own, theirs = (np.concatenate([np.arange(*span) for span in split.parts[one]]) for one in (rank, other))
            for queries, keys, block in pieces(split, rank, other, window):
                seen = seen_in_block(block, queries.stop - queries.start)
                assert block.causal or seen.any(axis=1).all()  # an empty row has no log-sum-exp
                met[np.ix_(own[queries], theirs[keys])] += seen
    assert np.array_equal(met, allowed(split.borders, window))


@given(borders_of, ranks, windows)
def test_gathered_keys_of_a_part_are_those_of_its_documents(borders, num_ranks, window):
    split = split_sequence(borders, num_ranks, (window,))
    for part in split.parts:
        for start, stop in part:
            first = split.document_of(start)[0]
            own = split.borders_within((start, stop))
            with_keys = [0, *(border + start - first for border in own[1:])]
            rows = allowed(with_keys, window)[start - first :]
            whole = allowed(split.borders, window)[start:stop]
            assert np.array_equal(rows, whole[:, first:stop])
            assert whole.sum() == rows.sum()


@given(borders_of, windows)
def test_work_is_the_number_of_pairs(borders, window):
    counted = np.concatenate([[0], np.cumsum(allowed(borders, window).sum(axis=1))])
    assert work_before(np.arange(borders[-1] + 1), borders, (window,)) == pytest.approx(counted)


def test_a_single_document_is_dealt_out_head_and_tail():
    split = split_sequence([0, 4096], 2)
    assert split.parts == [[(0, 1024), (3072, 4096)], [(1024, 3072)]]
    assert split.imbalance == pytest.approx(1.0)


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.sampled_from([2, 4, 8]))
def test_packed_documents_are_balanced_by_work_where_equal_shares_of_tokens_are_not(seed, num_ranks):
    rng = np.random.default_rng(seed)
    lengths = np.minimum(rng.lognormal(7, 1.5, 4000).astype(int) + 1, 16384)
    lengths = lengths[: np.searchsorted(np.cumsum(lengths), 65536)]
    borders = [0, *np.cumsum(lengths).tolist()]
    assert split_sequence(borders, num_ranks).imbalance < 1.1


def test_balance_counts_the_windows_of_the_layers():
    few, many = split_sequence([0, 4096], 2, (16,)), split_sequence([0, 4096], 2, (None,))
    assert few.work[0] == pytest.approx(few.work[1], rel=0.01)
    assert sum(few.work) < sum(many.work) / 50


def test_a_row_shorter_than_its_ranks_is_padded():
    split = split_sequence([0, 2], 4)
    assert split.borders == [0, 2, 8]
    assert torch.tensor(split.order()).numel() == 8
