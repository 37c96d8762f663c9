from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from cpt_dist.corpus.step import CuratedDocument, Dropped
from cpt_dist.corpus.steps import language as module
from cpt_dist.corpus.steps.language import Language
from cpt_dist.curation_config import LanguageConfig
from cpt_dist.errors import UserError

GERMAN = (
    "Der Hafen der alten Stadt liegt südlich vom Markt, und an den meisten Tagen kommen die Boote zurück, bevor die "
    "Glocken der Kirche zum ersten Mal geläutet haben. Niemand, der hier wohnt, hält das für etwas Besonderes.\n\n"
)


def test_a_wanted_language_stays_and_is_labelled(document, prose):
    result = Language(LanguageConfig(wanted=["en"]))(document(prose))
    assert result.labels["language"] == "en"
    assert result.scores["language_confidence"] > 0.9
    assert result.text == prose


def test_an_unwanted_language_is_dropped_with_what_it_is(document):
    dropped = Language(LanguageConfig(wanted=["en"]))(document(GERMAN))
    assert isinstance(dropped, Dropped)
    assert dropped.reason == "language"
    assert dropped.detail.startswith("de ")
    assert "wanted en" in dropped.detail


def test_an_unwanted_language_is_only_labelled_if_asked(document):
    result = Language(LanguageConfig(wanted=["en"], on_unwanted="label"))(document(GERMAN))
    assert result.labels["language"] == "de"
    assert result.counts == {"unwanted_language": 1}


def test_without_wanted_languages_nothing_is_dropped(document):
    assert isinstance(Language(LanguageConfig())(document(GERMAN)), CuratedDocument)


def test_paragraphs_in_other_languages_can_be_taken_out(document, prose):
    short = "Das Wetter ist heute schön und der Hafen liegt ganz still.\n\n"
    mixed = prose + "\n" + GERMAN + short + prose
    keep, drop = (Language(LanguageConfig(wanted=["en"], paragraphs=policy)) for policy in ("keep", "drop"))
    assert keep(document(mixed)).text == mixed
    result = drop(document(mixed))
    assert result.text == mixed.replace(GERMAN, "")
    assert result.counts == {"paragraphs_of_other_languages": 1}
    every = Language(LanguageConfig(wanted=["en"], paragraphs="drop", min_paragraph_bytes=20))
    assert every(document(mixed)).text == mixed.replace(GERMAN, "").replace(short, "")


def test_code_isnt_judged(document, code):
    given = document(code, labels={"content": "code"})
    assert Language(LanguageConfig(wanted=["fr"]))(given) is given


def test_what_cannot_be_told_is_unknown_and_the_policy_decides(document):
    given = document("12 34 56 @ 78")
    assert Language(LanguageConfig(wanted=["en"]))(given).labels["language"] == "unknown"
    assert Language(LanguageConfig(wanted=["en"], unknown="drop"))(given).reason == "language"


def test_code_points_that_pycld2_refuses_are_no_error(document, prose):
    assert Language(LanguageConfig())(document(prose + "\ufffe")).labels["language"] == "en"


def test_a_variant_of_a_wanted_language_is_wanted():
    assert module.in_languages("zh-Hant", ["zh"])
    assert module.in_languages("eng_Latn", ["eng"])
    assert not module.in_languages("zhu", ["zh"])


def test_a_fasttext_model_is_asked_without_numpy(document, monkeypatch, tmp_path):
    asked = []

    def predict(text, k, threshold, errors):
        asked.append(text)
        return [(1.00002, "__label__eng_Latn"), (0.0001, "__label__deu_Latn")]

    fake = SimpleNamespace(load_model=lambda path: SimpleNamespace(f=SimpleNamespace(predict=predict)))
    monkeypatch.setitem(sys.modules, "fasttext", fake)
    step = Language(LanguageConfig(detector="fasttext", model=str(tmp_path / "lid.bin"), wanted=["eng"]))
    result = step(document("two\nlines"))
    assert asked == ["two lines\n"]
    assert (result.labels["language"], result.scores["language_confidence"]) == ("eng_Latn", 1.0)


def test_a_missing_fasttext_says_what_to_install(document, monkeypatch):
    monkeypatch.setitem(sys.modules, "fasttext", None)
    with pytest.raises(UserError, match="pip install"):
        Language(LanguageConfig(detector="fasttext", model="absent.bin"))(document("text"))
