import json
import math
import random

import pytest

from cpt_dist.config import CptConfig, GuardsConfig
from cpt_dist.errors import UserError
from cpt_dist.training.guards import Guards, robust_z
from cpt_dist.validation import validate


def guards(num_steps, threshold=8.0, window=32):
    """A judge that has seen so many ordinary steps."""
    made, rng = Guards(GuardsConfig(spike_threshold=threshold, window=window)), random.Random(0)
    made.enter(0)
    for _ in range(num_steps):
        made.observe(rng.gauss(3, 0.1), math.exp(rng.gauss(0, 0.3)))
    return made


def test_z_is_that_of_a_normal_distribution_and_one_outlier_does_not_move_it():
    rng = random.Random(1)
    window = [rng.gauss(5, 2) for _ in range(4001)]
    assert robust_z(11, window) == pytest.approx(3, rel=0.05)
    assert robust_z(11, [*window, 1e9]) == pytest.approx(3, rel=0.05)
    assert robust_z(1.005, [1.0] * 9) < 1


@pytest.mark.parametrize("numbers", [(math.nan, 1.0), (math.inf, 1.0), (3.0, math.nan), (3.0, math.inf)])
def test_numbers_that_are_not_finite_are_bad_whatever_the_threshold(numbers):
    assert guards(0, threshold=0.0).objection(*numbers)


def test_a_spike_of_either_is_bad_and_neither_a_fall_nor_ordinary_noise():
    judge = guards(32)
    assert "loss" in judge.objection(9.0, 1.0)
    assert "gradient norm" in judge.objection(3.0, 1e4)
    assert judge.objection(0.5, 1e-4) == ""
    rng = random.Random(2)
    assert not any(judge.objection(rng.gauss(3, 0.1), math.exp(rng.gauss(0, 0.3))) for _ in range(10_000))


def test_half_a_window_is_needed_and_a_stage_begins_a_new_one():
    assert guards(15).objection(9.0, 1.0) == ""
    judge = guards(16)
    assert judge.objection(9.0, 1.0)
    judge.enter(1)
    assert judge.objection(9.0, 1.0) == ""


def test_the_memory_comes_back_from_a_checkpoint_bit_by_bit():
    judge, other = guards(40), guards(0)
    other.restore(json.loads(json.dumps(judge.state())))
    other.enter(0)
    assert other.state() == judge.state()
    assert guards(40, threshold=0.0).state() == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spike_threshold": 2.0}, "guards.spike_threshold: 2.0 would skip ordinary steps"),
        ({"spike_threshold": math.nan}, "guards.spike_threshold: nan"),
        ({"max_skips": 0}, "guards.max_skips: 0 must be at least 1"),
        ({"window": 3}, "guards.window: 3 must be at least 16"),
    ],
)
def test_a_wrong_guard_is_named(change, message):
    with pytest.raises(UserError) as caught:
        validate(CptConfig(guards=GuardsConfig(**change)))
    assert any(message in problem for problem in caught.value.problems)
