"""Base against adapted: paired on the same texts, signed, and nothing missing taken for a number."""

import math
from dataclasses import replace

import numpy as np
import pytest

from cpt_dist.errors import UserError
from cpt_dist.evaluation.bits_per_byte import DocumentScores
from cpt_dist.evaluation.documents import DocumentEncoder, EvaluationText
from cpt_dist.evaluation.evaluate import (
    HeldOutSet,
    Settings,
    SourceResult,
    compare,
    evaluate_sets,
    macro_averages,
)
from cpt_dist.evaluation.scorers import packed_scorer, plain_scorer
from tests.evaluation.tiny import save_model, text_of, tiny_model

SETTINGS = Settings(window_tokens=32, max_tokens=4000, batch_tokens=128, num_resamples=400, confidence=0.95, seed=0)


def planted(source, role, num_documents, change, seed=0):
    """A held-out set and scores whose bits per byte differ by about `change`."""
    generator = np.random.default_rng(seed)
    num_bytes = generator.integers(200, 400, num_documents)
    base = num_bytes * math.log(2) * (1 + 0.05 * generator.normal(size=num_documents))
    adapted = base + num_bytes * math.log(2) * change * (1 + 0.3 * generator.normal(size=num_documents))
    texts = [EvaluationText(str(i), "x" * int(size)) for i, size in enumerate(num_bytes)]
    scores = [DocumentScores(nll, num_bytes, num_bytes // 4) for nll in (base, adapted)]
    return HeldOutSet(source, role, texts, 500), *scores


def test_a_planted_gain_and_a_planted_loss_are_found_with_their_signs():
    domain, _ = compare(*planted("law", "domain", 40, -0.2), SETTINGS)
    replay, _ = compare(*planted("web", "replay", 40, 0.1), SETTINGS)
    assert (domain.outcome, replay.outcome) == ("improved", "worse")
    assert domain.gain.low > 0.1
    assert domain.forgetting is None
    assert replay.forgetting.low > 0.05
    assert replay.gain is None
    assert domain.adapted.value - domain.base.value == pytest.approx(domain.difference.value)


def test_a_model_that_has_not_changed_is_undecided():
    held_out, base, _ = planted("law", "domain", 40, 0)
    result, _ = compare(held_out, base, base, SETTINGS)
    assert (result.outcome, result.difference.value, result.documents_to_decide) == ("undecided", 0.0, None)


def test_one_document_gives_a_value_without_interval_and_no_outcome():
    result, replicates = compare(*planted("law", "domain", 1, -0.5), SETTINGS)
    assert result.outcome == "undecided"
    assert result.difference.value < 0
    assert result.base.low is result.difference.low is result.gain.high is replicates is None


def test_an_undecided_source_says_how_many_documents_would_decide():
    held_out, base, _ = planted("law", "domain", 12, 0)
    generator = np.random.default_rng(5)
    noisy = replace(base, nll=base.nll * (1 + 0.1 * generator.normal(size=12)))
    result, _ = compare(held_out, base, noisy, SETTINGS)
    assert result.outcome == "undecided"
    assert result.documents_to_decide > 12


def test_macro_averages_weigh_sources_equally_and_keep_roles_apart():
    compared = [
        compare(*planted("law", "domain", 10, -0.3), SETTINGS),
        compare(*planted("medicine", "domain", 90, -0.1, seed=1), SETTINGS),
        compare(*planted("web", "replay", 20, 0.1, seed=2), SETTINGS),
    ]
    missing = SourceResult("physics", "domain", "not run", "it holds out no document")
    replicates = {result.source: rows for result, rows in compared}
    domain, replay = macro_averages([*(result for result, _ in compared), missing], replicates, 0.95)
    values = [result.difference.value for result, _ in compared]
    assert domain.difference.value == pytest.approx((values[0] + values[1]) / 2)
    assert domain.difference.low < domain.difference.value < domain.difference.high < 0
    assert (domain.sources, domain.not_run) == (["law", "medicine"], ["physics"])
    assert replay.difference.value == pytest.approx(values[2])


def test_a_macro_average_has_no_interval_where_a_source_has_none():
    compared = [
        compare(*planted("law", "domain", 10, -0.3), SETTINGS),
        compare(*planted("medicine", "domain", 1, -0.1), SETTINGS),
    ]
    (domain,) = macro_averages(
        [result for result, _ in compared], {result.source: rows for result, rows in compared}, 0.95
    )
    assert domain.difference.low is None


def test_a_role_of_which_nothing_was_run_has_no_average():
    missing = SourceResult("web", "replay", "not run", "not prepared")
    assert macro_averages([missing], {}, 0.95) == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def sets():
    generator = np.random.default_rng(1)
    texts = [EvaluationText(str(i), text_of(generator, 12)) for i in range(8)]
    return [
        HeldOutSet("law", "domain", texts[:4], 4),
        HeldOutSet("web", "replay", texts[4:], 4),
        HeldOutSet("none", "replay", [], 0, "it holds out no document"),
    ]


def test_two_evaluations_of_the_same_models_are_equal(folder, sets):
    models = [(DocumentEncoder(folder), lambda seed=seed: plain_scorer(tiny_model(seed))) for seed in (0, 1)]
    first = evaluate_sets(sets, *models, SETTINGS)
    assert first == evaluate_sets(sets, *models, SETTINGS)
    assert [result.status for result in first[0]] == ["measured", "measured", "not run"]
    assert first[0][2].base is None


def test_packed_and_plain_models_score_alike(folder, sets):
    from cpt_dist.config import ModelConfig
    from cpt_dist.model.load import load_model

    packed = load_model(ModelConfig(path=str(folder))).eval()
    encoder = DocumentEncoder(folder)
    results, _ = evaluate_sets(
        sets, (encoder, lambda: plain_scorer(tiny_model())), (encoder, lambda: packed_scorer(packed)), SETTINGS
    )
    for result in results[:2]:
        assert abs(result.difference.value) <= 1e-6 * result.base.value


def test_a_loss_that_is_no_number_stops_the_evaluation(folder, sets):
    def broken(input_ids, labels, position_ids, cu_seqlens):
        return plain_scorer(tiny_model())(input_ids, labels, position_ids, cu_seqlens) * math.nan

    encoder = DocumentEncoder(folder)
    with pytest.raises(UserError, match=r"the adapted model: its loss on document 0 of source 'law' is no number"):
        evaluate_sets(sets, (encoder, lambda: plain_scorer(tiny_model())), (encoder, lambda: broken), SETTINGS)
