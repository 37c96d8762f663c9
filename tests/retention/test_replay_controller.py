"""Promises of adaptive replay: noise changes nothing, a sure rise raises replay, and all stays inside its bounds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpt_dist.replay_config import ReplayConfig, replay_problems
from cpt_dist.retention.replay_controller import Rise, decide, with_replay_share

SHARES = {"legal": 0.6, "medical": 0.2, "web": 0.15, "books": 0.05}
REPLAY = ["web", "books"]
RULE = ReplayConfig("bounded", tolerance=0.01, hysteresis=0.5, max_step=0.05, dwell_steps=10)
EXPONENTIAL = ReplayConfig("exponential", tolerance=0.01, dwell_steps=10)


def rises(web, books=0.0, width=0.002):
    return {name: Rise(value, value - width, value + width) for name, value in (("web", web), ("books", books))}


def share_after(found, rule=RULE, shares=SHARES, since=None):
    decision = decide(rule, shares, REPLAY, found, since)
    return None if decision is None else round(decision.replay_share, 6)


@pytest.mark.parametrize(
    ("web", "books", "width", "share"),
    [
        (0.05, 0.0, 0.002, 0.25),  # surely far too high: a whole step
        (0.017, 0.0, 0.002, 0.225),  # surely half the tolerance beyond it: half a step
        (0.05, 0.0, 0.045, None),  # as high, but it may be noise
        (0.008, 0.0, 0.001, None),  # inside the dead band
        (0.0, 0.05, 0.002, 0.25),  # any replay source can ask
        (0.001, 0.001, 0.002, 0.19),  # all surely below half the tolerance
        (-0.1, -0.1, 0.002, 0.15),  # better than at the start
        (-0.1, 0.008, 0.001, None),  # one has no room
        (-0.1, -0.1, 0.2, None),
    ],
)
def test_the_bounded_rule_moves_the_share_as_far_as_the_evidence_is_sure(web, books, width, share):
    assert share_after(rises(web, books, width)) == share


def test_without_an_interval_or_before_the_dwell_is_over_nothing_changes():
    assert share_after({name: Rise(0.5, None, None) for name in REPLAY}) is None
    assert share_after({}) is None
    assert share_after(rises(0.05), since=9) is None
    assert share_after(rises(0.05), since=10) == 0.25


def test_off_decides_nothing():
    assert share_after(rises(0.5), rule=ReplayConfig()) is None


@pytest.mark.parametrize("rule", [RULE, EXPONENTIAL])
@given(
    replay_share=st.floats(0.0, 0.95), web=st.floats(-0.5, 0.5), books=st.floats(-0.5, 0.5), width=st.floats(0.0, 0.2)
)
@settings(max_examples=60, deadline=None)
def test_every_decision_keeps_to_bounds_rate_and_sum(rule, replay_share, web, books, width):
    shares = with_replay_share(SHARES, REPLAY, replay_share)
    decision = decide(rule, shares, REPLAY, rises(web, books, width), None)
    if decision is None:
        return
    assert sum(decision.shares.values()) == pytest.approx(1)
    assert min(decision.shares.values()) >= 0
    assert sum(decision.shares[name] for name in REPLAY) == pytest.approx(decision.replay_share)
    assert abs(decision.replay_share - replay_share) <= rule.max_step + 1e-9
    assert decision.replay_share <= max(rule.high, replay_share)
    assert decision.replay_share >= min(rule.low, replay_share)
    assert "\n" not in decision.reason


@given(st.floats(0.05, 0.4), st.floats(-0.2, 0.2), st.floats(0, 0.1))
@settings(max_examples=60, deadline=None)
def test_a_sure_rise_never_lowers_the_share_and_a_sure_fall_never_raises_it(replay_share, web, width):
    shares = with_replay_share(SHARES, REPLAY, replay_share)
    after = share_after(rises(web, web, width), shares=shares)
    if after is not None:
        assert (after > replay_share) == (web > RULE.tolerance)


def test_noise_alone_changes_nothing_in_a_thousand_evaluations():
    generator = np.random.default_rng(0)
    noise = 0.01
    for value in generator.normal(0.0075, noise, 1000):
        found = {name: Rise(value, value - 4 * noise, value + 4 * noise) for name in REPLAY}
        assert share_after(found) is None
        assert share_after(found, rule=EXPONENTIAL) is None


def test_the_share_settles_where_the_loss_does():
    """A loss that falls as replay grows (rise = 0.06 - 0.2 x share) is brought into the dead band, and left there."""
    shares, changes = dict(SHARES), 0
    for _ in range(60):
        joint = sum(shares[name] for name in REPLAY)
        decision = decide(RULE, shares, REPLAY, rises(0.06 - 0.2 * joint, 0.06 - 0.2 * joint, 0.001), None)
        if decision is not None:
            shares, changes = decision.shares, changes + 1
            last = decision.replay_share
    assert 0.0045 < 0.06 - 0.2 * last < 0.0115
    assert changes < 30


def test_the_exponential_rule_follows_its_formula_inside_the_rate_limit():
    rule = ReplayConfig("exponential", tolerance=0.01, rate=5.0, uniform=0.0, max_step=0.5)
    decision = decide(rule, SHARES, REPLAY, rises(0.05, 0.0), None)
    grown = {**SHARES, "web": SHARES["web"] * np.exp(5.0 * 0.04)}
    assert decision.shares == pytest.approx({name: value / sum(grown.values()) for name, value in grown.items()})


def test_all_wrong_settings_are_named_at_once():
    wrong = ReplayConfig("bonded", low=0.5, high=0.2, tolerance=0, hysteresis=1, effect_steps=0)
    problems = replay_problems(wrong, evaluations=True)
    assert len(problems) == 5
    assert "did you mean 'bounded'?" in problems[0]
    (needed,) = replay_problems(ReplayConfig("bounded"), evaluations=False)
    assert needed.endswith("evaluation.every_steps above 0, or evaluation.schedule=log")
    assert replay_problems(ReplayConfig(), evaluations=False) == []
