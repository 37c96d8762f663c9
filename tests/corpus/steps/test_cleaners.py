from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

from cpt_dist.corpus.step import Dropped
from cpt_dist.corpus.steps import pii_names as names_module
from cpt_dist.corpus.steps import steps_after_near_dedup, steps_of_chunking
from cpt_dist.corpus.steps.abbreviations import Abbreviations
from cpt_dist.corpus.steps.citations import REPORTERS, Citations, find_citations
from cpt_dist.corpus.steps.code import CodeCleaning
from cpt_dist.corpus.steps.pages import PageFurniture
from cpt_dist.corpus.steps.pii import Pii
from cpt_dist.corpus.steps.pii_names import PersonNames
from cpt_dist.corpus.steps.repair import Normalise, Repair
from cpt_dist.curation_config import PiiConfig
from cpt_dist.curation_profiles import resolve_steps
from cpt_dist.errors import UserError


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("Roe v. Wade, 410 U. S. 113 (1973)", "Roe v. Wade, 410 U.S. 113 (1973)"),
        ("see 123 F. 2d 456, 459", "see 123 F.2d 456, 459"),
        ("12 F.Supp.2d 34;", "12 F. Supp. 2d 34;"),
        ("(93 S.Ct. 705)", "(93 S. Ct. 705)"),
        ("42 U. S. C. §1983 applies", "42 U.S.C. § 1983 applies"),
        ("17 C. F. R. § 240.10b-5", "17 C.F.R. § 240.10b-5"),
        ("5 N. Y. 3d 100 and", "5 N.Y.3d 100 and"),
    ],
)
def test_citations_are_spaced_in_one_way(document, written, canonical):
    result = Citations()(document(written))
    assert result.text == canonical
    assert result.counts == {"citations": 1, "citations_normalised": 1}


@pytest.mark.parametrize(
    "text",
    [
        "98 F 2 3",
        "the 5 US 10 teams",
        "the 5 U. S. 10 teams",
        "vitamin B. 12 and 6",
        "at 98 F. 2 people fainted",
        "0 U. S. 1,",
        "999 U. S. 1,",
        "1.5 U. S. 3,",
        "in 3 A. 4 B. 5 C.",
        "Section 3 P. 12 of the annex says 7",
        "12 F.2d 34a",
        "on May 5 So. 20 came",
    ],
)
def test_no_citation_is_forged(document, text):
    # E14: a loose pattern made 98 F.2d 3 of '98 F 2 3' and 5 U.S. 10 of '5 US 10 teams'.
    given = document(text)
    assert Citations()(given).text == text


def test_a_canonical_citation_is_counted_and_left(document):
    text = "410 U.S. 113, 93 S. Ct. 705, 35 L. Ed. 2d 147 (1973); 42 U.S.C. § 1983."
    result = Citations()(document(text))
    assert result.text == text
    assert result.counts == {"citations": 4}


def test_every_reporter_parses_as_itself():
    for reporter in REPORTERS:
        assert [citation.text for citation in find_citations(f"x, 12 {reporter} 34 (1999)")] == [f"12 {reporter} 34"]


def test_page_numbers_that_count_up_go_and_other_numbers_stay(document):
    page = "\n".join(f"Line {n} of the contract says something." for n in range(12))
    text = "\n".join(f"{page}\n{number}\nPage {number} of 9\nF-{number}" for number in (3, 4, 5, 6)) + "\n"
    result = PageFurniture()(document(text))
    assert result.text == "\n".join([page] * 4) + "\n"
    assert result.counts == {"page_lines_removed": 12}
    table = "year\n1990\n1991\n1992\n1993\n"
    assert PageFurniture()(document(table)).text == table
    unordered = "\n".join(f"{page}\nPage {number}" for number in (3, 9, 2))
    assert PageFurniture()(document(unordered)).text == unordered


MEDICAL = "PT in TX, 12 pt font, PT/INR 2.3. Pt. stable. Temp 37 C, rx/tx lines, a pt-based plan."


def test_medical_abbreviations_are_untouched_by_default(document):
    # E15: case was ignored and words were replaced: 'patient in treatment, 12 patient font, patient/INR'.
    given = document("pt c/o SOB, hx of HTN. " + MEDICAL, labels={"content": "prose"})
    for step in steps_after_near_dedup(resolve_steps("medical", {}, "x")):
        given = step(given)
    assert given.text == "pt c/o SOB, hx of HTN. " + MEDICAL


def test_annotated_abbreviations_keep_what_was_written(document):
    given = document("The pt has hx of falls; pt denies pain, hx unclear. " + MEDICAL)
    result = Abbreviations()(given)
    assert result.text == ("The pt (patient) has hx (history) of falls; pt denies pain, hx unclear. " + MEDICAL)
    assert result.counts == {"abbreviations_annotated": 2}
    after_number = document("Set in 12 pt with hx and dx.")
    assert Abbreviations()(after_number).text == "Set in 12 pt with hx (history) and dx (diagnosis)."
    lone = document("A pt is a point: 12 pt font. " + MEDICAL)
    assert Abbreviations()(lone) is lone


@pytest.mark.parametrize(
    "step",
    [
        Repair(),
        Normalise(),
        Pii(PiiConfig()),
        Citations(),
        PageFurniture(),
        Abbreviations(),
        CodeCleaning(False, "strip"),
        CodeCleaning(False, "spdx"),
    ],
    ids=repr,
)
def test_what_is_clean_stays_as_it_is(document, step):
    pages = "".join("A line of the text.\n" * 9 + f"Page {number}\n" for number in range(1, 5))
    texts = [
        "cafÃ© in ZÃ¼rich,\r\n410 U. S. 113 (1973), pt with hx of HTN; mail a@gmx.de or call (212) 555-0187.\n" + pages,
        "# Copyright A. Person\n# Licensed under the Apache License, Version 2.0\n\n# Copyright B\nx = 1\n",
    ]
    for text in texts:
        once = step(document(text, labels={"content": "code" if text.startswith("#") else "prose"}))
        assert step(once).text == once.text


@pytest.fixture
def presidio(monkeypatch):
    """A presidio that finds every 'Anna Meier'."""

    class AnalyzerEngine:
        def __init__(self, nlp_engine, supported_languages):
            self.language = supported_languages[0]

        def analyze(self, text, entities, language):
            assert (entities, language) == (["PERSON"], self.language)
            start = text.find("Anna Meier")
            return [SimpleNamespace(start=start, end=start + 10)] * 2 if start >= 0 else []

    package, engine = ModuleType("presidio_analyzer"), ModuleType("presidio_analyzer.nlp_engine")
    package.AnalyzerEngine = AnalyzerEngine
    engine.NlpEngineProvider = lambda nlp_configuration: SimpleNamespace(create_engine=lambda: None)
    monkeypatch.setitem(sys.modules, "presidio_analyzer", package)
    monkeypatch.setitem(sys.modules, "presidio_analyzer.nlp_engine", engine)
    names_module._analyzer.cache_clear()


@pytest.mark.usefixtures("presidio")
def test_names_are_masked_counted_or_drop_the_document(document):
    # json stands for a spaCy model: any package that is installed.
    text = "x" * 25_000 + "\nDear Anna Meier, ünd"
    masked = PersonNames(PiiConfig(names="mask", names_model="json"))(document(text))
    assert masked.text == text.replace("Anna Meier", "[PERSON]")
    assert masked.counts == {"pii_person": 1, "pii_person_masked": 1}
    counted = PersonNames(PiiConfig(names="count", names_model="json"))(document(text))
    assert (counted.text, counted.counts) == (text, {"pii_person": 1})
    assert PersonNames(PiiConfig(names="drop", names_model="json"))(document(text)) == Dropped("pii", "1 x person")
    clean = document("nobody")
    assert PersonNames(PiiConfig(names="mask", names_model="json"))(clean) is clean


@pytest.mark.usefixtures("presidio")
def test_a_missing_spacy_model_is_an_error_before_anything_is_fetched(document):
    with pytest.raises(UserError, match="absent_model"):
        PersonNames(PiiConfig(names="mask", names_model="absent_model"))(document("text"))


def test_a_missing_presidio_says_what_to_install(document, monkeypatch):
    names_module._analyzer.cache_clear()
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    with pytest.raises(UserError, match=r"pip install .cpt_dist\[names\]"):
        PersonNames(PiiConfig(names="mask", names_model="json"))(document("text"))


def test_the_legal_profile_cleans_in_its_order():
    steps = [step.name for step in steps_after_near_dedup(resolve_steps("legal", {}, "x"))]
    assert steps == ["pii", "page_furniture", "citations"]
    everything = {"pii": {"names": "count"}, "cleaning": {"abbreviations": "annotate", "generated": "drop"}}
    steps = [step.name for step in steps_after_near_dedup(resolve_steps("legal", everything, "x"))]
    assert steps == ["pii", "pii_names", "page_furniture", "citations", "abbreviations", "code_cleaning"]
    nothing = {"pii": {"policy": "off"}, "chunking": {"max_characters": 0}}
    assert not steps_after_near_dedup(resolve_steps("general", nothing, "x"))
    assert not steps_of_chunking(resolve_steps("general", nothing, "x"))
