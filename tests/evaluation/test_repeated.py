"""A gain over items and seeds: sure only where neither other items nor other seeds would take it away."""

import numpy as np
import pytest

from cpt_dist.evaluation.claims import GOAL, Claim, answers
from cpt_dist.evaluation.repeated import repeated_gain


def answers_of(rng, seeds, items, item_effect, seed_effect):
    """Right or wrong by two equal models, whose chances move with the item and, for one model, with the seed."""
    easy = rng.normal(0, item_effect, items)
    first, second = (
        rng.random((seeds, items)) < 1 / (1 + np.exp(-easy - rng.normal(0, seed_effect, (seeds, 1)))) for _ in range(2)
    )
    return second.astype(float) - first.astype(float)


@pytest.mark.parametrize("seed_effect", [0.0, 0.15, 0.5])
def test_equal_models_differ_in_at_most_5_percent_of_trials_however_much_seeds_vary(seed_effect):
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(200):
        found = repeated_gain(answers_of(rng, 3, 200, 1.0, seed_effect), 0.95)
        wrong += not found.low <= 0 <= found.high
    assert wrong <= 10


def test_items_alone_would_be_wrong_where_seeds_vary():
    """What the seeds are for: the claim over items is shown, the one over items and seeds isn't."""
    gains = np.zeros((3, 600))
    gains[0, :200], gains[1, :30], gains[2, :10] = 1.0, -1.0, 1.0
    mean = gains.mean(axis=0)
    of_items, of_both = answers(
        [
            Claim("items", GOAL, 0.0, "points", mean, np.ones(600)),
            Claim("both", GOAL, 0.0, "points", mean, np.ones(600), repeats=gains),
        ],
        0.95,
        1000,
        0,
    )
    assert (of_items.status, of_both.status) == ("shown", "undecided")
    assert of_both.gain.low < 0 < of_items.gain.low


def test_variances_are_those_of_items_and_of_seeds():
    gains = np.array([[1.0, 2.0, 3.0], [3.0, 4.0, 5.0]])
    found = repeated_gain(gains, 0.95)
    assert (found.value, found.item_variance, found.seed_variance) == (3.0, 1 / 3, 1.0)
    assert found.critical == pytest.approx(0.25 * 4.302653 + 0.75 * 12.7062, rel=1e-3)
    assert found.high - 3.0 == pytest.approx(found.critical * (4 / 3) ** 0.5)
    assert found.seed_share == 0.75


def test_models_that_agree_on_few_items_are_not_certain_to_be_equal():
    few, many = (repeated_gain(np.zeros((3, n)), 0.95) for n in (20, 2000))
    assert few.low < -0.05 < many.low < 0 < many.high < 0.05 < few.high
    with pytest.raises(ValueError, match="1 repetitions of 9 items"):
        repeated_gain(np.zeros((1, 9)), 0.95)
