import math

from hypothesis import given
from hypothesis import strategies as st

from cpt_dist.checkpoint.retention import Retention

STEPS = list(range(10, 101, 10))


def kept(retention, evaluations=None, names=None):
    return [step for step, why in retention.reasons(STEPS, evaluations or {}, names or {}).items() if why]


def test_without_a_limit_all_stay():
    assert kept(Retention()) == STEPS


def test_the_newest_every_nth_the_best_and_the_named_stay():
    scores = {step: {"law": abs(step - 40), "news": 1.0} for step in STEPS}
    retention = Retention(keep_last=2, keep_every=30, keep_best=1, best_of="law")
    assert kept(retention, scores, {"mine": 20}) == [20, 30, 40, 60, 90, 100]


def test_macro_is_the_mean_over_sources():
    assert Retention().score({"law": 1.0, "news": 2.0}) == 1.5
    assert Retention(best_of="law").score({"law": 1.0, "news": 2.0}) == 1.0
    assert Retention(best_of="law").score({"news": 2.0}) is None
    assert Retention().score({"law": math.nan}) is None


def test_reasons_say_in_words_which_rule_keeps_each():
    scores = {step: {"law": abs(step - 40) / 10} for step in STEPS if step != 90} | {90: {}}
    retention = Retention(keep_last=2, keep_every=50, keep_best=2, best_of="law")
    assert {
        step: why for step, why in retention.reasons(STEPS, scores, {"b": 20, "a": 20, "gone": 7}).items() if why
    } == {
        20: ["named 'a'", "named 'b'"],
        30: ["best 2 of law (1.0000)"],
        40: ["best 1 of law (0.0000)"],
        50: ["every 50"],
        90: ["last 2"],
        100: ["newest", "every 50"],
    }
    assert list(retention.reasons([30, 10, 20], {}, {})) == [10, 20, 30]
    assert Retention().reasons([1, 2], {}, {}) == {1: ["all are kept"], 2: ["newest"]}
    assert Retention(keep_last=1).reasons([1, 2], {}, {}) == {1: [], 2: ["newest"]}


def test_of_equal_scores_the_older_is_the_better_and_one_without_a_score_is_not_among_the_best():
    scores = {10: {"law": 2.0}, 20: {"law": 2.0}, 30: {"law": math.inf}, 40: {}}
    assert Retention(keep_last=1, keep_best=1).reasons([10, 20, 30, 40, 50], scores, {}) == {
        10: ["best 1 of macro (2.0000)"],
        20: [],
        30: [],
        40: [],
        50: ["newest"],
    }
    assert Retention().score({}) is None


@given(
    st.sets(st.integers(0, 500)), st.integers(0, 5), st.integers(0, 50), st.integers(0, 3), st.sets(st.integers(0, 500))
)
def test_the_newest_and_every_named_one_always_stay(steps, keep_last, keep_every, keep_best, named):
    names = {f"n{step}": step for step in named}
    reasons = Retention(keep_last, keep_every, keep_best).reasons(sorted(steps), {}, names)
    assert set(reasons) == steps
    assert all(reasons[step] for step in steps & named)
    assert not steps or reasons[max(steps)]
