"""Promises of the quotas: exact sums, no step back, a bound on the error, for weights that stand still or move."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpt_dist.data import mixture
from cpt_dist.data.mixture import UNIT, Quotas, quantise, worst_error
from cpt_dist.mixture_knots import mixture_knots

SHARE = st.one_of(st.sampled_from([0, 0, 1, 1, 2, 7]), st.floats(1e-4, 1.0), st.fractions(0, 1, max_denominator=50))


@st.composite
def quotas(draw, max_sources=9, max_samples=400, share=SHARE):
    num_sources = draw(st.integers(1, max_sources))
    num_samples = draw(st.integers(1, max_samples))
    inner = draw(st.lists(st.integers(0, num_samples), max_size=3))
    knots = [0, *sorted(inner), num_samples]
    row = st.lists(share, min_size=num_sources, max_size=num_sources).filter(any)
    weights = row.flatmap(lambda first: st.one_of(st.just([first] * len(knots)), st.tuples(*[row] * len(knots))))
    return Quotas(knots, draw(weights))


def counts_at_each_prefix(plan, first=0, num=None):
    """int64 [num + 1, source], from `split`."""
    num = plan.num_samples - first if num is None else num
    steps = np.zeros((num + 1, plan.num_sources), dtype=np.int64)
    steps[0] = plan.counts(first)
    for source, _, places in plan.split(first, num):
        steps[places + 1, source] += 1
    return steps.cumsum(axis=0)


@given(quotas())
@settings(max_examples=40, deadline=None)
def test_each_sample_is_one_more_of_exactly_one_source(plan):
    seen = np.sort(np.concatenate([places for _, _, places in plan.split(0, plan.num_samples)]))
    assert np.array_equal(seen, np.arange(plan.num_samples))


@given(quotas())
@settings(max_examples=40, deadline=None)
def test_counts_sum_to_n_and_agree_with_the_samples_at_every_prefix(plan):
    by_sample = counts_at_each_prefix(plan)
    for n in range(0, plan.num_samples + 1, 7):
        assert plan.counts(n).sum() == n
        assert plan.counts(n).tolist() == by_sample[n].tolist()


@given(quotas())
@settings(max_examples=40, deadline=None)
def test_counts_stay_within_the_bound_of_the_target_at_every_prefix(plan):
    targets = plan.targets(np.arange(plan.num_samples + 1))
    assert np.abs(counts_at_each_prefix(plan) - targets).max() <= plan.error_bound + 1e-9


@given(quotas(max_sources=4, share=st.floats(0.01, 1.0)))
@settings(max_examples=40, deadline=None)
def test_up_to_four_sources_are_never_off_by_a_whole_sample(plan):
    assert worst_error(plan) < 1
    assert plan.error_bound < 1


def test_a_share_that_jumps_from_zero_to_all_of_its_node_reaches_the_bound_of_one():
    plan = Quotas([0, 1, 1, 2], [[0, 1, 1], [0, 1, 1], [1, 0, 1], [1, 0, 1]])
    assert worst_error(plan) <= plan.error_bound == 1


@given(quotas(max_samples=200), st.data())
@settings(max_examples=40, deadline=None)
def test_any_window_is_what_the_whole_says_there(plan, data):
    first = data.draw(st.integers(0, plan.num_samples))
    num = data.draw(st.integers(0, plan.num_samples - first))
    whole = counts_at_each_prefix(plan)
    assert np.array_equal(counts_at_each_prefix(plan, first, num), whole[first : first + num + 1])
    for source, index, places in plan.split(first, num):
        assert index == whole[first, source]
        assert places.tolist() == sorted(places.tolist())


@given(num_samples=st.sampled_from([10**6, 10**9, 10**11, 10**13]), seed=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_doubles_never_decide_otherwise_than_whole_numbers(num_samples, seed):
    generator = np.random.default_rng(seed)
    weights = generator.choice([0, 1, 1, 0.3, 1e-6, 1e-3], size=(3, 5)) + np.array([1e-9, 0, 0, 0, 0])
    plan = Quotas([0, num_samples // 3, num_samples], weights.tolist())
    tree = plan._tree
    for node in range(tree.num_sources, tree.root + 1):
        first = int(generator.integers(0, max(1, tree._starts[node][-1] // (2 * UNIT))))
        # The span is a guess that holds for most: here for some nodes only.
        fast = tree.left_counts(np.full(40, node), np.arange(first, first + 40), span=0)
        assert fast.tolist() == [tree.left_count(node, first + place) for place in range(40)]
        assert set(np.diff(fast).tolist()) <= {0, 1}


@given(
    shares=st.lists(st.integers(0, 9), min_size=2, max_size=12).filter(lambda shares: sum(map(bool, shares)) > 1),
    place=st.floats(0, 1),
    num_samples=st.sampled_from([10**3, 10**9, 2**45, 2**47]),
)
@settings(max_examples=60, deadline=None)
def test_ties_of_shares_that_stand_still_are_decided_as_by_whole_numbers(shares, place, num_samples):
    plan = Quotas([0, num_samples], [shares, shares])
    first = int(place * (num_samples - 50))
    counts = np.stack([plan.counts(first + at) for at in range(51)])
    source, index = plan.assign(first, 50)
    assert np.array_equal(np.diff(counts, axis=0).argmax(axis=1), source)
    assert index.tolist() == [int(counts[at, source[at]]) for at in range(50)]
    assert [plan.count_of(number)(first) for number in range(len(shares))] == counts[0].tolist()


def test_the_exact_count_is_the_rounded_target_of_the_left_child():
    """S(u) = u^2/200 + u/2 over 100 samples for the node, T_left its half plus a bend: solved here by bisection."""
    plan = Quotas([0, 100], [[0, 1, 1], [3, 1, 0]])
    tree = plan._tree
    for node, (left_child, _) in enumerate(tree.joins, start=3):
        length, ((w0, w1),), ((l0, l1),) = 100, tree._pairs[node], tree._pairs[left_child]
        for count in range(tree._starts[node][-1] // (2 * UNIT)):
            low, high = Fraction(0), Fraction(length)
            for _ in range(80):
                middle = (low + high) / 2
                below = (w0 * middle + (w1 - w0) * middle**2 / (2 * length)) / UNIT < count
                low, high = (middle, high) if below else (low, middle)
            left = (l0 * low + (l1 - l0) * low**2 / (2 * length)) / UNIT + Fraction(1, 2)
            assert tree.left_count(node, count) in {int(left - Fraction(1, 10**12)), int(left + Fraction(1, 10**12))}


def test_targets_are_the_integral_of_the_shares():
    knots, shares = mixture_knots({"a": [[0.0, 1.0], [0.5, 3.0]], "b": 1.0})
    plan = Quotas([0, 500, 1000], [*shares, shares[-1]])
    # a: 1/2 rising to 3/4 over 500 samples, then 3/4 (knots 0 and 0.5; shares are normalised at knots)
    assert knots == [0.0, 0.5]
    assert plan.targets(500) == pytest.approx([312.5, 187.5])
    assert plan.targets(1000) == pytest.approx([687.5, 312.5])
    assert plan.targets(250)[0] == pytest.approx(250 * 0.5 + 0.25 * 250 * 250 / 1000)


def test_a_source_with_no_share_gets_no_sample():
    plan = Quotas([0, 100, 200], [[1, 0, 1, 2], [1, 0, 0, 2], [1, 0, 0, 2]])
    assert plan.counts(200)[1] == 0
    assert all(source != 1 for source, _, _ in plan.split(0, 200))


def test_a_source_gets_no_sample_while_its_share_is_zero_beside_one_other():
    plan = Quotas([0, 100, 100, 200, 200, 300], [[1, 1], [1, 1], [0, 1], [0, 1], [1, 1], [1, 1]])
    assert plan.counts(100)[0] == plan.counts(200)[0] == 50
    assert plan.counts(300)[0] == 100


@given(quotas(max_sources=6), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_at_most_the_bound_of_late_samples_comes_while_a_share_is_zero(plan, source):
    counts = counts_at_each_prefix(plan)[:, source % plan.num_sources]
    targets = plan.targets(np.arange(plan.num_samples + 1))[:, source % plan.num_sources]
    still = np.flatnonzero(np.diff(targets) == 0)
    for run in np.split(still, np.flatnonzero(np.diff(still) > 1) + 1):
        assert not run.size or counts[run[-1] + 1] - counts[run[0]] <= 2 * plan.error_bound


def test_a_thousand_sources_of_geometric_weight_need_no_deep_recursion():
    plan = Quotas([0, 3000], [[Fraction(1, 2**i) if i < 50 else Fraction(1, 10**6) for i in range(1000)]] * 2)
    assert plan.counts(3000).sum() == 3000


def test_the_tree_has_the_smaller_of_the_two_bounds(monkeypatch):
    weights = [[1, 2, 3, 4, 50, 60], [60, 50, 4, 3, 2, 1]]
    chosen = Quotas([0, 1000], weights).error_bound
    monkeypatch.setattr(mixture, "pairing", mixture.huffman)
    huffman = Quotas([0, 1000], weights).error_bound
    monkeypatch.undo()
    monkeypatch.setattr(mixture, "huffman", mixture.pairing)
    pairing = Quotas([0, 1000], weights).error_bound
    assert chosen == min(huffman, pairing)
    assert huffman != pairing


def test_quantised_weights_sum_to_one_unit_and_keep_zero():
    units = quantise([Fraction(1, 3), 0, 1e-9, 2.5])
    assert sum(units) == UNIT
    assert units[1] == 0


@given(st.lists(st.fractions(0, 1, max_denominator=10**40), min_size=2, max_size=20).filter(any))
@settings(max_examples=60, deadline=None)
def test_weights_with_long_denominators_are_rounded_as_exact_ones(weights):
    total = sum(weights)
    rounded = [int(weight / total * UNIT + Fraction(1, 2)) for weight in weights]
    rounded[rounded.index(max(rounded))] += UNIT - sum(rounded)
    assert quantise(weights) == rounded


def test_a_weight_halfway_between_two_units_is_rounded_up_whatever_its_digits():
    long = 3**200
    halfway = Fraction(2 * 5 + 1, 2 * UNIT)
    assert quantise([halfway * long, (1 - halfway) * long])[0] == 6
    assert quantise([halfway * long - 1, (1 - halfway) * long + 1])[0] == 5


@pytest.mark.parametrize("weights", [[0, 0], [1, -1]])
def test_weights_that_are_no_shares_are_refused(weights):
    with pytest.raises(ValueError, match="not be negative, nor all 0"):
        quantise(weights)


def test_the_quotas_are_those_of_earlier_versions():
    plan = Quotas([0, 500, 1000], [[7, 2, 1], [7, 2, 1], [2, 2, 6]])
    sequence = np.empty(12, dtype=np.int64)
    for source, _, places in plan.split(700, 12):
        sequence[places] = source
    assert sequence.tolist() == GOLDEN_SEQUENCE
    assert plan.counts(777).tolist() == GOLDEN_COUNTS


def test_the_printed_table_shows_no_error_beyond_its_bound(capsys):
    mixture.main()
    lines = capsys.readouterr().out.splitlines()[1:]
    assert len(lines) == 6
    assert all(float(line.split()[-1]) <= float(line.split()[-2]) for line in lines)


GOLDEN_SEQUENCE = [2, 0, 1, 0, 2, 0, 1, 0, 2, 0, 2, 0]
GOLDEN_COUNTS = [506, 155, 116]
