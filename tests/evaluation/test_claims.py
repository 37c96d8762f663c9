"""Claims and the verdict: planted truths are found, nothing is claimed of nothing, and no failure hides."""

import numpy as np
import pytest

from cpt_dist.evaluation.claims import (
    CONTROL,
    GOAL,
    RETENTION,
    Claim,
    answers,
    decide,
    holm,
)


def measured(kind, mean, threshold=0.0, items=60, name="law", seed=0, spread=0.05):
    generator = np.random.default_rng([seed, len(name), items])
    weights = np.round(generator.lognormal(6, 0.7, items)) + 1
    return Claim(name, kind, threshold, "bits per byte", (mean + generator.normal(0, spread, items)) * weights, weights)


def verdict(*claims):
    return decide(answers(claims, 0.95, 500, seed=0))


def test_a_gain_without_loss_helped():
    assert verdict(measured(GOAL, 0.1), measured(RETENTION, 0.0, -0.05, name="web")).word == "helped"


def test_a_planted_loss_is_found_however_large_the_gain():
    found = verdict(
        measured(GOAL, 0.5),
        *(measured(RETENTION, 0.1, -0.02, name=f"ok{n}") for n in range(5)),
        measured(RETENTION, -0.1, -0.02, name="broken"),
    )
    assert found.word == "did not help"
    assert found.reasons[0].startswith("retention of broken is refuted: -0.09")


def test_a_gain_below_the_least_useful_one_did_not_help():
    assert verdict(measured(GOAL, 0.02, 0.1)).word == "did not help"


def test_a_gain_that_the_control_arm_has_as_well_is_none_of_the_data():
    found = verdict(measured(GOAL, 0.1), measured(CONTROL, -0.1))
    assert found.word == "did not help"
    assert "over the control arm" in found.reasons[0]


def test_a_model_that_has_not_changed_is_undecided():
    unchanged = Claim("law", GOAL, 0.0, "bits per byte", np.zeros(50), np.ones(50))
    found = verdict(unchanged)
    assert (found.word, found.answers[0].p_above, found.answers[0].items_needed) == ("undecided", 1.0, None)


def test_models_of_equal_quality_are_called_helped_in_at_most_one_of_twenty_trials():
    words = [verdict(measured(GOAL, 0.0, items=30, seed=trial)).word for trial in range(200)]
    assert words.count("helped") / 200 <= 0.05
    assert words.count("did not help") / 200 <= 0.05


def test_the_number_of_items_that_an_undecided_claim_needs_decides_it():
    few = verdict(measured(GOAL, 0.02, items=12, spread=0.1, seed=3)).answers[0]
    assert few.status == "undecided"
    assert few.items_needed > 12
    assert verdict(measured(GOAL, 0.02, items=4000, spread=0.1, seed=3)).word == "helped"


def test_the_detectable_effect_is_detected_four_times_in_five():
    detectable = verdict(measured(GOAL, 0.0, items=4000)).answers[0].detectable * (4000 / 40) ** 0.5
    shown = [answers([measured(GOAL, detectable, items=40, seed=n)], 0.95, 500, 0)[0].status for n in range(100)]
    assert 0.65 <= shown.count("shown") / 100 <= 0.92


def test_what_was_not_run_is_neither_kept_nor_lost():
    missing = Claim("web", RETENTION, -0.02, "bits per byte", not_run="it holds out no document")
    found = verdict(measured(GOAL, 0.2), missing)
    assert found.word == "undecided"
    assert found.reasons == ["retention of web: not run, since it holds out no document"]


def test_without_a_goal_nothing_helped():
    found = verdict(measured(RETENTION, 0.1, -0.02))
    assert (found.word, found.reasons) == ("undecided", ["no goal was declared; name a domain source"])


def test_too_few_items_decide_nothing():
    assert verdict(measured(GOAL, 5.0, items=4)).word == "undecided"


def test_holm_equals_the_printed_example():
    """Four p-values of Holm 1979's kind: multiplied by 4, 3, 2, 1 in rising order, never falling."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
