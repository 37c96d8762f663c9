"""Claims about suites: goals gain, the others are kept, and what was not run is neither."""

from dataclasses import replace

import numpy as np
import pytest

from cpt_dist.config import CptConfig
from cpt_dist.evaluation.claims import answers, decide
from cpt_dist.evaluation.suites.compare import Judge
from cpt_dist.evaluation.suites.suite_file import Suite
from cpt_dist.evaluation.suites.tasks import SuiteScores
from cpt_dist.evaluation.verdict_suites import claim_of, suite_claims
from tests.evaluation.suites.small import model_folder, questions, suite_file

JUDGE = Judge(0.95, 400, 0, None)
SUITE = Suite("facts", "knowledge", margin=0.05)


def scores(right, items=400):
    values = np.zeros(items)
    values[:right] = 1.0
    return SuiteScores(None, [str(n) for n in range(items)], "acc", True, values, np.full(items, 0.25))


def config_with(*goals, **margins):
    config = CptConfig()
    config.verdict = replace(config.verdict, goals=list(goals), margins=margins)
    return config


@pytest.mark.parametrize(
    ("adapted", "goals", "kind", "status"),
    [
        (260, ["facts"], "goal", "shown"),
        (140, ["facts"], "goal", "refuted"),
        (202, ["facts"], "goal", "undecided"),
        (200, [], "retention", "shown"),
        (120, [], "retention", "refuted"),
        (182, [], "retention", "undecided"),
    ],
)
def test_a_planted_change_of_a_suite_is_found(adapted, goals, kind, status):
    claim = claim_of(SUITE, scores(200), scores(adapted), JUDGE, config_with(*goals))
    (answer,) = answers([claim], 0.95, 1000, 0)
    assert (claim.kind, answer.status) == (kind, status)


def test_few_items_on_which_the_models_agree_show_nothing_was_lost_only_if_they_would_show_a_loss():
    few, many = (
        answers([claim_of(SUITE, scores(3, n), scores(3, n), JUDGE, config_with())], 0.95, 1000, 0)[0]
        for n in (12, 400)
    )
    assert (few.status, many.status) == ("undecided", "shown")
    assert few.gain.low < -0.05 < many.gain.low
    assert 12 < few.items_needed <= 400
    assert few.detectable > 0.05


def test_a_margin_of_a_goal_is_its_least_gain_and_that_of_a_suite_what_it_may_lose():
    other, adapted = scores(200), scores(220)
    assert claim_of(SUITE, other, adapted, JUDGE, config_with("facts", facts=0.1)).threshold == 0.1
    assert claim_of(SUITE, other, adapted, JUDGE, config_with()).threshold == -0.05


@pytest.mark.parametrize(
    ("other", "reason"),
    [(SuiteScores("its data is missing"), "its data is missing"), (scores(3, items=9), "the models were given")],
)
def test_a_suite_that_was_not_run_is_neither_kept_nor_lost(other, reason):
    claim = claim_of(SUITE, other, scores(200), JUDGE, config_with("facts"))
    assert claim.not_run.startswith(reason)
    assert decide(answers([claim], 0.95, 100, 0)).word == "undecided"


def test_the_models_of_a_verdict_are_asked_and_a_control_arm_has_to_be_beaten(tmp_path):
    folders = {
        name: str(model_folder(tmp_path / name, seed=n)) for n, name in enumerate(("base", "adapted", "control"))
    }
    config = config_with("words")
    paths = [suite_file(tmp_path, name, rows=questions(12, seed=n)) for n, name in enumerate(("words", "others"))]
    config.suites = replace(config.suites, run=[str(path) for path in paths])
    config.evaluation = replace(config.evaluation, bootstrap=100)
    found = suite_claims(config, folders)
    assert [(claim.name, claim.kind) for claim in found] == [
        ("words", "goal"),
        ("words", "control"),
        ("others", "retention"),
    ]
    assert all(len(claim.gains) == 12 for claim in found)
