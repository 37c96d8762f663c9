"""Intervals cover what they claim, outcomes need evidence, and degenerate data decides nothing."""

import numpy as np
import pytest

from cpt_dist.evaluation.sign_flip import p_different
from cpt_dist.evaluation.statistics import (
    Estimate,
    documents_to_decide,
    effective_documents,
    least_documents,
    outcome,
    percentile_interval,
    ratio,
    resampled_ratios,
    source_seed,
    student_t_quantile,
)


def simulated(generator, num_documents, mean, spread=0.2, size_spread=1.0):
    """Per-document numerators and byte counts whose ratio of expectations is `mean`."""
    num_bytes = np.round(generator.lognormal(6, size_spread, num_documents)) + 1
    return (mean + generator.normal(0, spread, num_documents)) * num_bytes, num_bytes


def interval(numerator, num_bytes, seed, num_resamples=500):
    replicates = resampled_ratios(numerator[None], num_bytes, num_resamples, seed)[0]
    return percentile_interval(replicates, 0.95, effective_documents(num_bytes))


@pytest.mark.parametrize("num_documents", [8, 20, 60])
def test_the_interval_covers_the_truth_in_95_of_100_repetitions(num_documents):
    generator = np.random.default_rng(num_documents)
    hits = 0
    for trial in range(300):
        low, high = interval(*simulated(generator, num_documents, mean=0.1), seed=trial)
        hits += low <= 0.1 <= high
    assert 0.925 <= hits / 300 <= 0.99


@pytest.mark.parametrize("num_documents", [2, 4, 6, 12, 40])
def test_no_change_is_called_undecided_in_nearly_all_repetitions(num_documents):
    generator = np.random.default_rng(num_documents)
    claims = 0
    for trial in range(200):
        numerator, num_bytes = simulated(generator, num_documents, mean=0.0)
        low, high = interval(numerator, num_bytes, seed=trial)
        p_value = p_different(numerator, trial, 500)
        claims += outcome(Estimate(0.0, low, high), effective_documents(num_bytes), 0.95, p_value) != "undecided"
    assert claims / 200 <= 0.05


@pytest.mark.parametrize(("mean", "expected"), [(-0.2, "improved"), (0.2, "worse")])
def test_a_planted_change_is_found_with_its_sign(mean, expected):
    numerator, num_bytes = simulated(np.random.default_rng(1), 60, mean)
    low, high = interval(numerator, num_bytes, seed=0)
    p_value = p_different(numerator, 0)
    assert outcome(Estimate(mean, low, high), effective_documents(num_bytes), 0.95, p_value) == expected


def test_pairing_finds_a_change_that_unpaired_intervals_hide():
    generator = np.random.default_rng(3)
    base, num_bytes = simulated(generator, 40, mean=1.0, spread=0.5)
    adapted = base - 0.05 * num_bytes + generator.normal(0, 0.02, 40) * num_bytes
    replicates = resampled_ratios(np.stack([base, adapted, adapted - base]), num_bytes, 2000, 0)
    base_interval, adapted_interval, difference = (percentile_interval(row, 0.95, 40) for row in replicates)
    assert base_interval[0] < adapted_interval[1]
    assert difference[1] < 0


def test_the_difference_of_resamples_is_the_resample_of_the_difference():
    generator = np.random.default_rng(4)
    base, adapted, num_bytes = generator.random((3, 25)) + 1
    rows = resampled_ratios(np.stack([base, adapted, adapted - base]), num_bytes, 200, 0)
    np.testing.assert_allclose(rows[1] - rows[0], rows[2], atol=1e-12)


def test_resamples_depend_on_the_seed_and_the_source_only():
    numerator, num_bytes = simulated(np.random.default_rng(5), 30, mean=1.0)
    first = resampled_ratios(numerator[None], num_bytes, 300, source_seed(1, "law"))
    assert np.array_equal(first, resampled_ratios(numerator[None], num_bytes, 300, source_seed(1, "law")))
    assert not np.array_equal(first, resampled_ratios(numerator[None], num_bytes, 300, source_seed(1, "medicine")))
    assert not np.array_equal(first, resampled_ratios(numerator[None], num_bytes, 300, source_seed(2, "law")))


def test_resamples_do_not_depend_on_how_they_are_chunked(monkeypatch):
    numerator, num_bytes = simulated(np.random.default_rng(5), 30, mean=1.0)
    whole = resampled_ratios(numerator[None], num_bytes, 300, 7)
    monkeypatch.setattr("cpt_dist.evaluation.statistics._CHUNK_ELEMENTS", 210)
    np.testing.assert_array_equal(whole, resampled_ratios(numerator[None], num_bytes, 300, 7))


def test_one_huge_document_among_many_small_ones_decides_nothing():
    num_bytes = np.array([1e6, *[100.0] * 40])
    low, high = interval(-0.1 * num_bytes, num_bytes, seed=0)
    assert outcome(Estimate(-0.1, low, high), effective_documents(num_bytes), 0.95, 0.0) == "undecided"


def test_without_an_interval_nothing_is_decided():
    assert outcome(Estimate(-5.0, None, None), 1, 0.95, 0.0) == "undecided"


def test_an_interval_that_sign_flips_do_not_confirm_decides_nothing():
    assert outcome(Estimate(-0.1, -0.2, -0.01), 40, 0.95, 0.06) == "undecided"
    assert outcome(Estimate(-0.1, -0.2, -0.01), 40, 0.95, 0.05) == "improved"


def test_least_documents_follow_the_sign_test():
    assert [least_documents(level) for level in (0.5, 0.75, 0.9, 0.95, 0.99)] == [2, 3, 5, 6, 8]


@pytest.mark.parametrize(("degrees", "quantile"), [(1, 12.7062), (2, 4.3027), (5, 2.5706), (30, 2.0423), (2000, 1.96)])
def test_student_quantiles_equal_the_printed_table(degrees, quantile):
    assert student_t_quantile(0.975, degrees) == pytest.approx(quantile, rel=2e-4)


def test_the_documents_said_to_decide_do_decide_four_times_in_five():
    generator = np.random.default_rng(8)
    pilot, pilot_bytes = simulated(generator, 4000, mean=0.05, size_spread=0.5)
    needed = documents_to_decide(pilot, pilot_bytes, 0.95)
    found = 0
    for trial in range(300):
        low, _ = interval(*simulated(generator, needed, mean=0.05, size_spread=0.5), seed=trial)
        found += low > 0
    assert 0.7 <= found / 300 <= 0.9


def test_no_number_of_documents_is_promised_without_a_difference_or_a_variance():
    assert documents_to_decide(np.zeros(9), np.ones(9), 0.95) is None
    assert documents_to_decide(np.ones(1), np.ones(1), 0.95) is None


def test_ratio_weighs_documents_by_their_bytes():
    np.testing.assert_allclose(ratio(np.array([[1.0, 9.0], [2.0, 8.0]]), np.array([1.0, 4.0])), [2.0, 2.0])


def test_a_resample_is_a_ratio_of_sums():
    replicates = resampled_ratios(np.array([[1.0, 9.0]]), np.array([1.0, 4.0]), 200, 0)[0]
    assert set(replicates) == {1 / 1, (1 + 9) / (1 + 4), 9 / 4}


def test_the_gain_is_the_difference_with_the_other_sign():
    assert Estimate(-0.2, -0.3, -0.1).negated() == Estimate(0.2, 0.1, 0.3)
    assert Estimate(-0.2, None, None).negated() == Estimate(0.2, None, None)
