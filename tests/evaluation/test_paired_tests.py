"""Known values, and coverage counted over all possible outcomes."""

import itertools
import math

import numpy as np
import pytest

from cpt_dist.evaluation import paired_tests as tests


def test_mcnemar_is_the_sign_test_on_discordant_items():
    assert tests.mcnemar_exact(0, 0) == 1.0
    assert tests.mcnemar_exact(0, 6) == pytest.approx(2 / 64)
    assert tests.mcnemar_exact(1, 9) == pytest.approx(2 * 11 / 1024)
    assert tests.mcnemar_exact(5, 5) == 1.0


def test_mcnemar_equals_scipys_binomial_test():
    stats = pytest.importorskip("scipy.stats")
    for first, second in [(3, 12), (40, 61), (700, 800)]:
        expected = stats.binomtest(first, first + second).pvalue
        assert tests.mcnemar_exact(first, second) == pytest.approx(expected, rel=1e-9)


def test_tango_interval_has_a_width_where_all_agree():
    z2 = 1.959964**2
    low, high = tests.tango_interval(0, 0, 20, 0.95)
    assert (low, high) == pytest.approx((-z2 / (20 + z2), z2 / (20 + z2)), abs=1e-6)


@pytest.mark.parametrize(("b", "c", "n"), [(0, 1, 44), (9, 3, 50), (12, 0, 30)])
def test_tango_bounds_are_where_the_score_test_turns(b, c, n):
    # The score with the likelihood maximised by brute force over the share that only the second has right.
    for bound, z in zip(tests.tango_interval(b, c, n, 0.95), (1.959964, -1.959964), strict=True):
        shares = np.linspace(max(0, -bound), (1 - bound) / 2, 2_000_001)[1:-1]
        log_likelihood = (n - b - c) * np.log(1 - 2 * shares - bound)
        log_likelihood += b * np.log(shares + bound) if b else 0
        log_likelihood += c * np.log(shares) if c else 0
        second = shares[log_likelihood.argmax()]
        score = (b - c - n * bound) / math.sqrt(n * (2 * second + bound * (1 - bound)))
        assert score == pytest.approx(z, abs=1e-3)


def test_tango_interval_mirrors():
    low, high = tests.tango_interval(9, 3, 50, 0.9)
    assert tests.tango_interval(3, 9, 50, 0.9) == pytest.approx((-high, -low), abs=1e-9)
    assert low < 6 / 50 < high


@pytest.mark.parametrize(("only_first", "only_second"), [(0.1, 0.1), (0.02, 0.02), (0.2, 0.05)])
def test_tango_interval_covers_the_truth_as_often_as_it_says(only_first, only_second):
    n, covered = 25, 0.0
    both = 1 - only_first - only_second
    for b, c in itertools.product(range(n + 1), repeat=2):
        if b + c > n:
            continue
        ways = math.comb(n, b) * math.comb(n - b, c)
        chance = ways * only_first**b * only_second**c * both ** (n - b - c)
        if chance < 1e-9:
            continue
        low, high = tests.tango_interval(b, c, n, 0.95)
        covered += chance * (low <= only_first - only_second <= high)
    assert covered > 0.93


def test_items_to_show_is_the_inverse_of_the_detectable_effect():
    effect = tests.minimum_detectable_effect(0.25, 400, 0.95)
    assert effect == pytest.approx((1.959964 + 0.841621) * 0.5 / 20, rel=1e-5)
    assert tests.items_to_show(0.25, effect, 0.95) in (400, 401)
    assert tests.items_to_show(0.25, 0.0, 0.95) is None


def test_few_items_that_agree_leave_room_for_disagreement():
    assert tests.difference_variance(np.zeros(10), 0.95) > 0.1
    assert tests.difference_variance(np.zeros(10_000), 0.95) < 0.001
    scores = np.array([0.5, 0.25, -0.5])
    assert tests.difference_variance(scores, 0.95) == pytest.approx(scores.var(ddof=1))
