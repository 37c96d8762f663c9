"""The sign-flip test keeps its level whatever the sizes of the items, and finds what is there."""

import itertools

import numpy as np
import pytest

from cpt_dist.evaluation.sign_flip import EXACT_UP_TO, p_different, p_greater


def test_the_exact_p_value_is_the_share_of_all_ways_to_set_the_signs():
    values = np.array([3.0, -1.0, 0.5, 2.0, -0.25])
    sums = [np.dot(signs, values) for signs in itertools.product((-1, 1), repeat=5)]
    assert p_greater(values, seed=0) == np.mean(np.array(sums) >= values.sum() - 1e-9)


def test_equal_signs_of_n_items_are_as_rare_as_a_coin_that_falls_n_times_alike():
    assert p_greater(np.full(6, 0.1), seed=0) == 2.0**-6
    assert p_different(np.full(6, -0.1), seed=0) == 2.0**-5


def test_nothing_that_changed_proves_nothing():
    assert p_different(np.zeros(40), seed=0) == 1.0
    assert p_greater(np.array([]), seed=0) == 1.0


def test_items_that_did_not_change_leave_the_p_value_alone():
    changed = np.array([1.0, 2.0, -0.5, 4.0, 1.5, 0.3])
    assert p_greater(np.concatenate([changed, np.zeros(30)]), seed=0) == p_greater(changed, seed=0)


def test_sampled_signs_agree_with_all_of_them(monkeypatch):
    values = np.random.default_rng(2).normal(0.3, 1, EXACT_UP_TO)
    exact = p_greater(values, seed=1)
    monkeypatch.setattr("cpt_dist.evaluation.sign_flip.EXACT_UP_TO", 0)
    monkeypatch.setattr("cpt_dist.evaluation.sign_flip._CHUNK_ELEMENTS", 1000)
    assert p_greater(values, seed=1, num_flips=20_000) == pytest.approx(exact, abs=0.01)


@pytest.mark.parametrize("num_items", [8, 40])
def test_unequal_items_without_a_change_are_found_changed_in_at_most_one_of_twenty(num_items):
    generator = np.random.default_rng(num_items)
    wrong = 0
    for trial in range(400):
        sizes = generator.lognormal(6, 1.5, num_items)
        wrong += p_different(generator.normal(0, 0.2, num_items) * sizes, trial, 500) <= 0.05
    assert wrong / 400 <= 0.07  # 0.05 and two standard errors


def test_a_p_value_is_never_zero():
    assert p_greater(np.full(100, 1.0), seed=0, num_flips=999) == 0.001


def test_a_difference_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="no number"):
        p_greater(np.array([1.0, np.nan]), seed=0)
