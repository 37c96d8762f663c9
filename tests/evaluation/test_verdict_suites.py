"""Claims about suites: goals gain, the others are kept, and what was not run is neither."""

from dataclasses import replace

import numpy as np
import pytest

from cpt_dist.config import CptConfig
from cpt_dist.evaluation.claims import answers, decide, without
from cpt_dist.evaluation.suites.compare import Judge
from cpt_dist.evaluation.suites.contamination import Evidence
from cpt_dist.evaluation.suites.run import Searched
from cpt_dist.evaluation.suites.suite_file import Suite
from cpt_dist.evaluation.suites.tasks import SuiteScores
from cpt_dist.evaluation.verdict import Judgement, WithLeaked
from cpt_dist.evaluation.verdict_report import write_verdict
from cpt_dist.evaluation.verdict_suites import at_chance, claim_of, suite_claims
from tests.evaluation.suites.small import model_folder, questions, suite_file
from tests.evaluation.test_evaluate import SETTINGS

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
    found = suite_claims(config, folders).claims
    assert [(claim.name, claim.kind) for claim in found] == [
        ("words", "goal"),
        ("words", "control"),
        ("others", "retention"),
    ]
    assert all(len(claim.gains) == 12 for claim in found)


def claim_with_leaks(gained, leaked):
    """A goal about 400 items, of which the first `gained` are won, and the one without the first `leaked`."""
    claim = claim_of(SUITE, scores(0), scores(gained), JUDGE, config_with("facts"))
    return claim, without(claim, range(leaked))


def test_a_goal_that_holds_only_with_leaked_items_is_not_shown():
    over_all, clean = claim_with_leaks(gained=60, leaked=60)
    assert decide(answers([over_all], 0.95, 400, 0)).word == "helped"
    assert decide(answers([clean], 0.95, 400, 0)).word == "undecided"
    assert (clean.threshold, len(clean.gains), clean.gains.sum()) == (over_all.threshold, 340, 0)


def test_a_goal_of_which_every_item_leaked_is_not_run():
    _, clean = claim_with_leaks(gained=60, leaked=400)
    assert clean.not_run == "all its 400 items occur in the training data"


def test_a_report_shows_the_answers_with_and_without_leaked_items_and_names_what_holds_only_with_them(tmp_path):
    over_all, clean = claim_with_leaks(gained=60, leaked=60)
    evidence = [("facts", "3", Evidence("law", "ab" * 16, "the words that were found"))]
    searched = Searched(["law"], ["web"], 10, 1000, evidence, {"facts": list(range(60))}, {"facts": 2})
    with_leaked = WithLeaked(answers([over_all], 0.95, 400, 0), searched, {"facts": 60}, {"facts": 2})
    verdict = decide(answers([clean], 0.95, 400, 0))
    models = {"base": "models/base", "adapted": "runs/x/model"}
    record = write_verdict(Judgement(models, True, SETTINGS, verdict, [], with_leaked), tmp_path)
    leaked = record["claims"][0]["leaked"]
    assert (leaked["items"], leaked["found"], leaked["unchecked"], leaked["status_with"]) == (400, 60, 2, "shown")
    assert "holds only with the 60 of 400 items that occur in the training data" in record["reasons"][-1]
    assert record["contamination"]["found"][0]["document"] == "ab" * 16
    for name in ("verdict.md", "verdict.html"):
        page = (tmp_path / name).read_text()
        assert f"{over_all.gains.mean():+.4f}" in page
        assert record["reasons"][-1] in page
        assert "the words that were found" in page
        assert "Not searched for the items: web" in page


def test_a_verdict_whose_items_were_not_searched_says_so(tmp_path):
    claim, _ = claim_with_leaks(gained=60, leaked=0)
    found = answers([claim], 0.95, 400, 0)
    models = {"base": "models/base", "adapted": "runs/x/model"}
    judgement = Judgement(models, True, SETTINGS, decide(found), [], WithLeaked(found, None, {}, {}))
    record = write_verdict(judgement, tmp_path)
    assert (record["claims"][0]["leaked"], record["contamination"]) == (None, None)
    assert "Not searched for in the training data (suites.contamination=false): facts." in record["notes"]


@pytest.mark.parametrize(("right", "at"), [(0, True), (100, True), (114, True), (118, False)])
def test_a_base_that_is_not_surely_above_chance_is_seen(right, at):
    assert at_chance(scores(right), 0.95) == at


def test_a_score_that_is_no_share_of_right_answers_has_no_chance_level():
    assert not at_chance(replace(scores(0), higher_is_better=False), 0.95)
    assert not at_chance(replace(scores(0), values=np.full(400, -3.0)), 0.95)


def test_the_report_says_where_there_was_nothing_to_lose(tmp_path):
    claim = claim_of(SUITE, scores(100), scores(100), JUDGE, config_with())
    found = answers([claim], 0.95, 400, 0)
    models = {"base": "models/base", "adapted": "runs/x/model"}
    record = write_verdict(Judgement(models, True, SETTINGS, decide(found), [], None, ["facts"]), tmp_path)
    assert any(line.startswith("facts: the base model isn't above chance") for line in record["notes"])
