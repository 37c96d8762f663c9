import unicodedata

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from cpt_dist.corpus.normalise import document_id, normalise

text = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("\r\n\t\x0b\x0c\x85\x00\x7fe\u0301"))


@given(text)
def test_normalising_twice_changes_nothing(raw):
    once = normalise(raw)
    assert normalise(once) == once


@given(text)
def test_result_is_nfc_without_control_characters_but_newline_and_tab(raw):
    result = normalise(raw)
    assert unicodedata.is_normalized("NFC", result)
    assert not [c for c in result if unicodedata.category(c) == "Cc" and c not in "\n\t"]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("one\r\ntwo\rthree\n", "one\ntwo\nthree\n"),
        ("  def f():\n\treturn 1\n\n", "  def f():\n\treturn 1\n\n"),
        ("page one\fpage two", "page one\npage two"),
        ("nul\x00l and bell\x07", "null and bell"),
        ("e\x01\u0301", "é"),
    ],
)
def test_line_ends_become_lf_and_layout_stays(raw, expected):
    assert normalise(raw) == expected


def test_id_is_the_big_endian_xxh3_128_of_the_utf8_text():
    expected = xxhash.xxh3_128("Größe".encode()).intdigest().to_bytes(16, "big")
    assert document_id("Größe") == expected
