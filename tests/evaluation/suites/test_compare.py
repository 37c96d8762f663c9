"""Outcomes of suites on planted answers."""

import numpy as np
import pytest

from cpt_dist.evaluation.suites.compare import Judge, by_capability, compare_scores, with_outcomes
from cpt_dist.evaluation.suites.suite_file import Suite
from cpt_dist.evaluation.suites.tasks import SuiteScores

JUDGE = Judge(confidence=0.95, num_resamples=500, seed=0)


def scores(values, chance=0.25, metric="acc", higher=True):
    values = np.asarray(values, dtype=np.float64)
    keys = [f"item {number}" for number in range(len(values))]
    return SuiteScores(
        keys=keys,
        metric=metric,
        higher_is_better=higher,
        values=values,
        chance=np.full(len(values), chance),
        answer_bits=values + 1,
        texts=keys,
    )


def result(before, after, name="suite", capability="math", margin=None, **options):
    suite = Suite(name, capability, margin=margin)
    return compare_scores(suite, scores(before, **options), scores(after, **options), JUDGE)


def decided(*results):
    return with_outcomes(results, JUDGE.confidence)


def answers(right, wrong):
    return [1.0] * right + [0.0] * wrong


def test_an_unchanged_model_is_kept_with_many_items_and_undecided_with_few():
    many, few = decided(result(answers(600, 400), answers(600, 400)), result(answers(6, 4), answers(6, 4)))
    assert (many.outcome, few.outcome) == ("kept", "undecided")
    assert few.comparison.gain.low < -0.2


def test_a_planted_loss_is_worse_and_a_planted_gain_improved():
    before = answers(120, 80)
    loss = [0.0] * 30 + before[30:]
    lost, won = decided(result(before, loss), result(loss, before))
    assert (lost.outcome, won.outcome) == ("worse", "improved")
    assert (lost.comparison.only_base, lost.comparison.only_adapted) == (30, 0)
    assert lost.comparison.gain.value == -won.comparison.gain.value == -0.15


def test_retention_is_corrected_for_chance_and_signed():
    before, after = answers(150, 50), answers(125, 75)
    (found,) = decided(result(before, after))
    kept = found.comparison.retention
    assert kept.value == pytest.approx((0.625 - 0.25) / (0.75 - 0.25))
    assert kept.low < kept.value < kept.high < 1
    (gained,) = decided(result(after, before))
    assert gained.comparison.retention.value == pytest.approx((0.75 - 0.25) / (0.625 - 0.25))


def test_a_base_at_chance_has_nothing_to_keep():
    (found,) = decided(result(answers(30, 70), answers(20, 80)))
    assert found.comparison.retention is None


def test_lower_is_better_turns_the_sign():
    rng = np.random.default_rng(0)
    before = rng.uniform(1, 2, 60)
    (found,) = decided(result(before, before - 0.3 + rng.normal(0, 0.05, 60), higher=False, metric="loss", chance=0))
    assert found.comparison.gain.value == pytest.approx(0.3, abs=0.03)
    assert (found.outcome, found.comparison.retention, found.comparison.only_base) == ("improved", None, None)


def test_one_finding_among_many_suites_is_corrected():
    before, after = answers(60, 40), [0.0] * 8 + answers(52, 40)[:52] + [1.0] + [0.0] * 39
    alone = decided(result(before, after))[0]
    crowd = decided(result(before, after), *(result(before, before, name=f"other {n}") for n in range(5)))[0]
    assert alone.comparison.p_value == crowd.comparison.p_value < 0.05
    assert (alone.outcome, crowd.outcome) == ("worse", "undecided")
    assert crowd.comparison.p_adjusted == pytest.approx(6 * crowd.comparison.p_value)


def test_a_sure_loss_within_the_declared_margin_is_kept():
    before = answers(1500, 500)
    after = [0.0] * 20 + before[20:]
    strict, lenient = decided(result(before, after, margin=0.005))[0], decided(result(before, after, margin=0.05))[0]
    assert (strict.outcome, lenient.outcome) == ("worse", "kept")


def test_an_average_never_hides_a_failing_suite():
    fine = [result(answers(50, 150), answers(150, 50), name=f"fine {n}") for n in range(3)]
    bad = result(answers(150, 50), answers(100, 100), name="bad")
    missing = compare_scores(Suite("gone", "math"), SuiteScores(not_run="no data"), SuiteScores(), JUDGE)
    (math,) = by_capability(decided(*fine, bad, missing))
    assert math.mean_gain > 0.2
    assert math.outcome == "worse"
    assert math.suites == {"improved": ["fine 0", "fine 1", "fine 2"], "worse": ["bad"], "not run": ["gone"]}


def test_what_was_not_run_has_no_number():
    (found,) = decided(compare_scores(Suite("gone", "math"), SuiteScores(not_run="no data"), SuiteScores(), JUDGE))
    assert (found.outcome, found.comparison, found.not_run) == ("not run", None, "no data")
    (capability,) = by_capability([found])
    assert (capability.outcome, capability.mean_gain) == ("not run", None)


def test_different_items_are_not_compared():
    found = compare_scores(Suite("s", "math"), scores(answers(3, 3)), scores(answers(3, 4)), JUDGE)
    assert found.not_run == "the two models were given different items"


def test_where_nothing_changed_a_false_outcome_is_rare():
    rng = np.random.default_rng(1)
    false = 0
    for _ in range(200):
        before, after = (rng.random(80) < 0.6).astype(float), (rng.random(80) < 0.6).astype(float)
        false += decided(result(before, after))[0].outcome in ("improved", "worse")
    assert false <= 10
