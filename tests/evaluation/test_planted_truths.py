"""Planted truths are found, and nothing else is: models of known quality go through the whole verdict."""

import functools
import math
from dataclasses import replace

import numpy as np
import pytest

from cpt_dist.data.shards import read_held_out
from cpt_dist.errors import UserError
from cpt_dist.evaluation import verdict
from cpt_dist.evaluation.documents import EvaluationText
from cpt_dist.evaluation.evaluate import HeldOutSet, evaluate, folder_scorer
from cpt_dist.evaluation.report import notes
from cpt_dist.evaluation.verdict import judge
from cpt_dist.evaluation.verdict_report import build_record
from tests.helpers.in_process import typed
from tests.helpers.planted_text import Chain, chain_model, prepare_texts

DOMAIN, GENERAL = Chain.random("abcd", 1), Chain.random("stuv", 2)
UNIFORM = Chain("abcd", np.full((4, 4), 0.25))


def documents(chain, seed, count):
    rng = np.random.default_rng(seed)
    return [chain.document(rng, 2 * int(rng.integers(15, 60))) for _ in range(count)]


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Model folders by name, and the configuration of two sources of which half is held out."""
    folder = tmp_path_factory.mktemp("planted")
    worse_domain, worse_general = DOMAIN.blurred(0.2), GENERAL.blurred(0.2)
    models = {
        "base": chain_model(folder / "base", worse_domain, GENERAL, pairs=True),
        "learned": chain_model(folder / "learned", DOMAIN, GENERAL, pairs=True),
        "forgot": chain_model(folder / "forgot", DOMAIN, worse_general, pairs=True),
        "bytes": chain_model(folder / "bytes", worse_domain, GENERAL),
    }
    texts = {"law": ("domain", documents(DOMAIN, 1, 60)), "web": ("replay", documents(GENERAL, 2, 60))}
    return models, prepare_texts(folder, models["base"], texts)


def configured(planted, base, adapted):
    models, mapping = planted
    config = typed(mapping, mapping["evaluate"]["out"])
    return replace(config, evaluate=replace(config.evaluate, base=str(models[base]), adapted=str(models[adapted])))


def held_out(planted, source):
    return [document.text for document in read_held_out(f"{planted[1]['data']['shards']}/{source}")]


def test_an_exact_model_has_the_entropy_of_the_text_under_either_tokenizer(planted):
    found = evaluate(configured(planted, "base", "bytes"))
    for result, chain in zip(found.sources, (DOMAIN.blurred(0.2), GENERAL), strict=True):
        texts = held_out(planted, result.source)
        # Which of both languages a document is in takes a bit.
        exact = (sum(map(chain.bits, texts)) + len(texts)) / sum(map(len, texts))
        assert result.documents == len(texts) > 20
        assert result.base.value == pytest.approx(exact, abs=1e-6)
        assert result.adapted.value == pytest.approx(exact, abs=1e-6)
        assert result.base_tokens * 2 == result.adapted_tokens == result.bytes
        assert result.outcome == "undecided"
    assert not found.same_tokenizer
    assert any("bits per byte can be compared, losses and token counts can't" in line for line in notes(found, None))


def test_the_code_of_a_long_text_has_the_entropy_of_its_language():
    rng = np.random.default_rng(0)
    assert DOMAIN.bits(DOMAIN.document(rng, 200_000)) / 200_000 == pytest.approx(DOMAIN.entropy_rate, abs=0.01)


@pytest.mark.parametrize(
    ("base", "adapted", "word"),
    [
        ("base", "learned", "helped"),
        ("learned", "base", "did not help"),
        ("base", "forgot", "did not help"),
        ("forgot", "base", "did not help"),
        ("base", "base", "undecided"),
        ("base", "bytes", "undecided"),
    ],
)
def test_planted_gains_and_losses_decide_the_verdict_and_nothing_else_does(planted, base, adapted, word):
    assert judge(configured(planted, base, adapted)).verdict.word == word


def test_the_measured_gain_holds_the_true_one_within_its_interval(planted):
    goal, retention = judge(configured(planted, "base", "forgot")).verdict.answers
    assert goal.gain.low < DOMAIN.excess_of(DOMAIN.blurred(0.2)) < goal.gain.high
    assert retention.gain.low < -GENERAL.excess_of(GENERAL.blurred(0.2)) < retention.gain.high


def test_models_of_equal_quality_are_called_helped_in_at_most_one_of_twenty_verdicts(planted, tmp_path, monkeypatch):
    """Any letter is as likely as any other, so a model with its letters swapped is as good; 200 sets of documents."""
    model = Chain.random("abcd", 5, concentration=2.0)
    config = configured(planted, "base", "base")
    config.evaluate.base = str(chain_model(tmp_path / "base", model, pairs=True))
    config.evaluate.adapted = str(chain_model(tmp_path / "adapted", replace(model, letters="cadb"), pairs=True))
    load = functools.cache(lambda folder: folder_scorer(config, folder)())
    monkeypatch.setattr(verdict, "folder_scorer", lambda config, folder: lambda: load(folder))
    words = []
    for trial in range(200):
        rng = np.random.default_rng(trial)
        lengths = np.repeat([30, 60, 90, 120], 5)
        texts = [EvaluationText(str(n), UNIFORM.document(rng, length)) for n, length in enumerate(lengths)]
        fresh = [HeldOutSet("law", "domain", texts, len(texts))]
        monkeypatch.setattr(verdict, "read_held_out_sets", lambda *_, fresh=fresh: fresh)
        found = judge(config).verdict
        assert found.answers[0].gain.value != 0
        words.append(found.word)
    assert words.count("helped") / 200 <= 0.05
    assert words.count("did not help") / 200 <= 0.05


@pytest.mark.parametrize(("count", "least"), [(1, 6), (4, 6)])
def test_too_few_documents_decide_nothing_and_the_verdict_says_how_many_would(planted, tmp_path, count, least):
    models, _ = planted
    mapping = prepare_texts(tmp_path, models["base"], {"law": ("domain", documents(DOMAIN, 3, 60))})
    mapping["evaluate"] |= {"adapted": str(models["learned"])}
    config = typed(mapping, tmp_path / "run")
    texts = [document.text for document in read_held_out(tmp_path / "shards" / "law")]
    config.evaluation = replace(config.evaluation, max_tokens=str(sum(map(len, texts[:count])) // 2))
    found = judge(config)
    assert found.verdict.answers[0].items == count
    assert found.verdict.answers[0].items_needed >= least
    needed = found.verdict.answers[0].items_needed
    assert build_record(found)["sentence"].startswith(f"Undecided (needs n = {needed} for law): 0 of 1 claims")
    assert f"needs n = {needed}" in found.verdict.reasons[0]


@pytest.mark.parametrize("program", [evaluate, judge])
def test_without_held_out_text_there_is_nothing_to_compare(planted, tmp_path, program):
    models, _ = planted
    mapping = prepare_texts(tmp_path, models["base"], {"law": ("domain", documents(DOMAIN, 3, 5))}, 0.0)
    with pytest.raises(UserError) as caught:
        program(typed(mapping, tmp_path / "run"))
    assert caught.value.problems == [
        "source 'law': not run, since it holds out no document; raise data.held_out_fraction and prepare it again"
    ]


def test_weights_under_different_tokenizers_have_no_average(planted):
    config = configured(planted, "base", "bytes")
    config.verdict.averages = [0.5]
    with pytest.raises(UserError, match=r"verdict\.averages: base and adapted model have different tokenizers"):
        judge(config)


def test_the_bits_of_a_code_are_at_least_the_entropy_for_every_worse_model():
    assert all(DOMAIN.excess_of(DOMAIN.blurred(share)) > 0 for share in (0.01, 0.1, 0.9))
    assert math.isclose(UNIFORM.entropy_rate, 2.0)
