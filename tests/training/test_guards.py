import json
import math
import random
from types import SimpleNamespace

import pytest

from cpt_dist.config import CptConfig, GuardsConfig
from cpt_dist.data.skip import WINDOW, Skip
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


def test_z_is_the_distance_from_the_median_in_scaled_absolute_deviations():
    assert robust_z(10, [1, 2, 3, 4, 5]) == pytest.approx((10 - 3) / (1.4826 * 1))
    assert robust_z(-4, [1, 2, 3, 4, 5]) == pytest.approx((-4 - 3) / (1.4826 * 1))
    assert robust_z(101, [100.0] * 5) == pytest.approx(1 / (0.01 * 100))
    assert robust_z(1, [-100.0] * 5) == pytest.approx(101 / (0.01 * 100))
    assert robust_z(0.5, [0.0] * 5) == pytest.approx(0.5 / 0.01)


def test_the_window_forgets_what_is_older_and_the_same_stage_keeps_it():
    judge = guards(40)
    assert len(judge.state()["losses"]) == len(judge.state()["log_norms"]) == 32
    before = judge.state()
    judge.enter(0)
    assert judge.state() == before
    judge.enter(1)
    assert judge.state() == {"stage": 1, "losses": [], "log_norms": []}


def test_a_checkpoint_without_a_memory_begins_a_new_window_and_a_long_one_is_cut():
    judge = guards(40)
    judge.restore({})
    assert judge.state() == {"stage": -1, "losses": [], "log_norms": []}
    judge.restore({"stage": 2, "losses": list(range(50)), "log_norms": list(range(50))})
    assert judge.state() == {"stage": 2, "losses": list(range(18, 50)), "log_norms": list(range(18, 50))}


def test_a_gradient_of_nothing_has_a_logarithm():
    judge = guards(0)
    judge.observe(3.0, 0.0)
    assert judge.state()["log_norms"] == [math.log(1e-30)]


def test_a_spike_is_one_that_lies_above_the_threshold_and_says_by_how_much():
    judge = Guards(GuardsConfig(spike_threshold=8.0, window=16))
    judge.enter(0)
    for loss in [1.0, 2.0, 3.0, 4.0, 5.0] * 3:
        judge.observe(loss, 1.0)
    assert judge.objection(3 + 8 * 1.4826 - 1e-9, 1.0) == ""
    assert judge.objection(3 + 8 * 1.4826 + 1e-6, 1.0) == "the loss 14.86 lies 8.0 robust deviations above its median"
    assert judge.objection(3.0, math.exp(0.081)) == (
        "the log gradient norm 0.081 lies 8.1 robust deviations above its median"
    )
    assert judge.objection(math.nan, 1.0) == "the loss is nan"
    assert judge.objection(3.0, math.inf) == "a gradient is not finite"


def order_of(*skips):
    return SimpleNamespace(skips=skips)


def test_bad_steps_in_a_row_end_at_the_sample_and_begin_where_a_good_one_lies():
    first, second, third = Skip(8, 12, reason="a"), Skip(16, 20, reason="b"), Skip(20, 24, reason="c")
    order = order_of(first, second, third)
    assert Guards.bad_steps_before(order, 24) == [second, third]
    assert Guards.bad_steps_before(order, 12) == [first]
    assert Guards.bad_steps_before(order, 16) == []
    judge = guards(0)
    assert judge.in_trouble(order, 20)
    assert not judge.in_trouble(order, 16)


def test_bad_steps_of_a_window_count_no_more_nor_does_the_window():
    steps = (Skip(16, 20, reason="b"), Skip(20, 24, reason="c"))
    window = Skip(12, 24, WINDOW, "back", {})
    assert Guards.bad_steps_before(order_of(*steps, window), 24) == []
    later = Skip(24, 28, reason="d")
    assert Guards.bad_steps_before(order_of(*steps, window, later), 28) == [later]


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
