"""The three verdicts of a gate, on numbers that are made to have them."""

import numpy as np
import pytest

from cpt_dist.evaluation.non_inferiority import Measured, compare, verdict_of_all

SETTINGS = {"confidence": 0.95, "num_resamples": 400, "seed": 0}


def measured(rise, documents=40, spread=0.05, seed=1):
    """(now, then) of a source whose bits per byte rose by `rise`, with noise of `spread` between documents."""
    rng = np.random.default_rng(seed)
    weights = rng.integers(500, 1500, documents).astype(np.float64)
    then = rng.normal(1.0, 0.3, documents)  # documents differ far more than the models do
    return Measured((then + rise + rng.normal(0, spread, documents)) * weights, weights), Measured(
        then * weights, weights
    )


def verdicts(margins, **sources):
    now, then = ({name: pair[side] for name, pair in sources.items()} for side in (0, 1))
    return {one.name: one for one in compare(now, then, margins, **SETTINGS)}


@pytest.mark.parametrize(("rise", "verdict"), [(0.0, "pass"), (0.2, "fail"), (0.1, "undecided"), (-0.3, "pass")])
def test_the_interval_is_held_against_the_margin(rise, verdict):
    (one,) = verdicts({"web": 0.1}, web=measured(rise)).values()
    assert one.verdict == verdict
    assert one.low < one.difference < one.high
    assert one.difference == pytest.approx(rise, abs=0.03)
    assert one.now - one.then == pytest.approx(one.difference)


def test_a_negative_margin_asks_for_a_gain():
    assert verdicts({"web": -0.1}, web=measured(0.0))["web"].verdict == "fail"
    assert verdicts({"web": -0.1}, web=measured(-0.3))["web"].verdict == "pass"


def test_rounding_on_every_document_fails_no_margin_of_zero():
    _, then = measured(0.0)
    rounded = Measured(then.values * (1 + 5e-7), then.weights)
    assert verdicts({"web": 0.0}, web=(rounded, then))["web"].verdict != "fail"
    assert verdicts({"web": 0.0}, web=(Measured(then.values * 1.001, then.weights), then))["web"].verdict == "fail"


@pytest.mark.parametrize(("lost", "verdict"), [(0, "undecided"), (3, "undecided"), (20, "fail")])
def test_items_that_are_right_or_wrong_have_an_interval_where_all_agree(lost, verdict):
    then = np.r_[np.zeros(50), np.ones(10)]
    now = np.r_[np.ones(lost), then[lost:]]
    one = verdicts({"suite": 0.03}, suite=(Measured(now, np.ones(60)), Measured(then, np.ones(60))))["suite"]
    assert one.verdict == verdict
    assert one.low < one.difference < one.high
    assert one.high - one.low > 0.1


def test_a_few_documents_decide_nothing():
    (one,) = verdicts({"web": 0.1}, web=measured(5.0, documents=4)).values()
    assert (one.verdict, one.low, one.high) == ("undecided", None, None)


def test_macro_is_the_mean_of_all_sources_whatever_their_size():
    found = verdicts({"macro": 0.1}, web=measured(0.4, documents=200), law=measured(-0.1, documents=20, seed=2))
    assert found["macro"].difference == pytest.approx(0.15, abs=0.03)
    assert found["macro"].verdict == "fail"


def test_one_failure_fails_and_nothing_undecided_passes():
    found = verdicts({"web": 0.1, "law": 0.1}, web=measured(0.0), law=measured(0.1, seed=2))
    assert [one.verdict for one in found.values()] == ["pass", "undecided"]
    assert verdict_of_all(list(found.values())) == "undecided"
    found = verdicts({"web": 0.1, "law": 0.1}, web=measured(0.0), law=measured(0.4))
    assert verdict_of_all(list(found.values())) == "fail"
