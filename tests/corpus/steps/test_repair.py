from __future__ import annotations

import pytest

from cpt_dist.corpus.normalise import document_id
from cpt_dist.corpus.step import CuratedDocument, Dropped, Origin
from cpt_dist.corpus.steps import steps_before_dedup
from cpt_dist.corpus.steps.repair import Identify, Normalise, Repair
from cpt_dist.curation_profiles import resolve_steps

MOJIBAKE = "The cafÃ© in ZÃ¼rich isnâ€™t open.\nA line in ASCII.\n"


def test_mojibake_is_repaired_and_counted(document):
    result = Repair()(document(MOJIBAKE))
    assert result.text == "The café in Zürich isn’t open.\nA line in ASCII.\n"
    assert result.counts == {"mojibake_lines": 1}


@pytest.mark.parametrize(
    "text",
    [
        "‘quotes’ — “and” ﬁligatures, ｗｉｄｅ letters, &amp; &eacute; entities,\r\nline ends and \x1b[31mcolours",
        "Der Ärger über «Größe» und das naïve Œuvre, 中文字符, Ελληνικά, ©®™ ½ × ÷ §",
        "plain ASCII, with `code` and 'quotes'",
    ],
)
def test_what_isnt_broken_is_left_alone(document, text):
    given = document(text)
    assert Repair()(given) is given


def test_the_id_is_that_of_the_text_that_goes_on(document):
    # E6: a hash taken before cleaning, or changed after it, finds no duplicate.
    broken, whole = document("cafÃ©\r\nx\x00"), document("cafe\u0301\nx")
    ids = []
    for given in (broken, whole):
        for step in steps_before_dedup(resolve_steps("general", {}, "x")):
            given = step(given)
        ids.append(given.id)
    assert ids[0] == ids[1] == document_id("café\nx")
    assert len(ids[0]) == 16


def test_newlines_and_indentation_stay(document, code):
    # E12: collapsing white space before asking whether it is code destroys it.
    assert Normalise()(document(code)).text == code
    table = "a\tb\n1\t2\n\n\n  indented\n"
    assert Normalise()(document(table)).text == table


def test_characters_of_a_program_stay():
    text = "kelvin = '\u212a'\r\nomega = '\u2126\x1b[0m'\n\x0c\naccent = 'nai\u0308ve'\n"
    given = CuratedDocument(b"", text, "stdlib", Origin("a.py", 0))
    for step in steps_before_dedup(resolve_steps("code", {}, "x")):
        given = step(given)
    assert given.text == text.replace("\r\n", "\n")
    assert given.id == document_id(given.text)


def test_a_blank_document_is_dropped_as_empty(document):
    assert Normalise()(document(" \n\t\x00")) == Dropped("empty", "4 characters, none that shows")


def test_a_normal_document_is_returned_as_it_is(document, prose):
    given = document(prose)
    assert Normalise()(given) is given
    assert Identify()(given) == given


def test_a_long_document_goes_through_every_step_too(document):
    # E7: documents above a length skipped dedup, filters and cleaning.
    result = document(MOJIBAKE * 2_000)
    for step in steps_before_dedup(resolve_steps("general", {}, "x")):
        result = step(result)
    assert "Ã" not in result.text
    assert result.counts["mojibake_lines"] == 2_000


def test_code_with_deliberate_mojibake_is_not_repaired_in_the_code_profile():
    names = [step.name for step in steps_before_dedup(resolve_steps("code", {}, "x"))]
    assert names == ["normalise", "identify"]
