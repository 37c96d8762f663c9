"""Only the words of an evaluation item and their surroundings go, the rest stays, and what went is on record."""

import json
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpt_dist.corpus.curation.curate import curate
from cpt_dist.corpus.curation.decontaminate import cut_out, joined_windows
from cpt_dist.corpus.ngrams import NgramIndex, words_and_places, words_of
from cpt_dist.corpus.step import CuratedDocument, Origin
from tests.corpus.test_curation import LAW, NEWS, curated_rows, curation_config, dropped_rows, rows_of


def spans_config(root, texts, **settings):
    item = {"question": " ".join(LAW[2].split()[40:60])}
    (root / "items.jsonl").write_text(json.dumps(item) + "\n")
    config = curation_config(root, {"law": texts, "news": NEWS})
    config.data.curation.near_duplicates.enabled = False
    decontamination = config.data.curation.decontamination
    decontamination.files, decontamination.action = [str(root / "items.jsonl")], "spans"
    for name, value in {"margin_characters": 30, "min_piece_characters": 40, **settings}.items():
        setattr(decontamination, name, value)
    return config


def test_only_the_words_and_their_margin_go_and_the_pieces_with_what_went_are_the_document(tmp_path):
    folder = curate(spans_config(tmp_path, LAW))["law"]
    pieces = [row for row in curated_rows(tmp_path, "law") if row["record"] == 2]
    removed = rows_of((tmp_path / "curated" / "law").glob("removed-*.parquet"))
    assert [row["record"] for row in removed] == [2]
    assert removed[0]["detail"].startswith(f"{tmp_path}/items.jsonl:0: ")
    words = " ".join(LAW[2].split()[40:60])
    assert words in " ".join(removed[0]["text"].split())
    assert len(words) + 2 * 30 <= len(removed[0]["text"]) <= len(words) + 2 * 30 + 40
    whole = sorted([*pieces, *removed], key=lambda row: row["offset"])
    assert "".join(row["text"] for row in whole) == LAW[2]
    assert {row["parent"] for row in pieces} == {removed[0]["id"]}
    step = folder.manifest["steps"]["decontamination"]
    assert (step["read"], step["kept"], step["pieces"]) == (len(LAW), len(LAW), len(LAW) + 1)
    assert folder.manifest["notes"]["contaminated_spans"] == 1


def test_a_document_of_too_many_pieces_or_with_nothing_beside_goes_whole(tmp_path):
    words, other = " ".join(LAW[2].split()[40:60]), " ".join(LAW[5].split())
    texts = [f"{other} {words} {other} {words} {other}", f"a few words {words} and no more"]
    curate(spans_config(tmp_path, texts, max_pieces=2))
    found = {row["record"]: row for row in dropped_rows(tmp_path, "law")}
    assert found[0]["reason"] == found[1]["reason"] == "contaminated"
    assert found[0]["detail"].endswith("(3 pieces would be left)")
    assert found[1]["detail"].endswith("(nothing is left beside it)")


def test_places_of_words_are_those_of_the_text_even_where_lower_case_has_another_length():
    text = "İstanbul STRASSE straße x" + " 水火"
    words, places = words_and_places(text)
    assert [text[start:end] for start, end in places if text[start:end] != "İstanbul"] == [
        "STRASSE", "straße", "x", "水", "火",
    ]  # fmt: skip
    assert words == words_of(text)
    index = NgramIndex(["one two three four five six seven eight nine"], 13)
    found = list(index.places_in("İ İ so: One, two THREE four five six seven eight nine."))
    assert [("İ İ so: One, two THREE four five six seven eight nine."[a:b]) for a, b, _, _ in found] == [
        "One, two THREE four five six seven eight nine"
    ]


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 80), st.integers(1, 20))
def test_windows_and_pieces_never_lose_or_repeat_a_character(data, length, least):
    spans = data.draw(st.lists(st.tuples(st.integers(0, length - 1), st.integers(1, 10)), min_size=1, max_size=6))
    windows = joined_windows([(a, min(a + n, length), "why") for a, n in spans], length, least)
    text = "".join(chr(ord("a") + place % 26) for place in range(length))
    document = CuratedDocument(b"0" * 16, text, "law", Origin("f", 0), counts={"pii_email": 2})
    cut = cut_out(document, windows)
    parts = [SimpleNamespace(offset=one.start, text=text[one.start : one.end]) for one in cut.removed]
    assert "".join(one.text for one in sorted([*cut.pieces, *parts], key=lambda one: one.offset)) == text
    assert all(len(piece.text) >= least for piece in cut.pieces)
    assert sum(piece.counts.get("pii_email", 0) for piece in cut.pieces) == (2 if cut.pieces else 0)


@pytest.mark.parametrize(("field", "value"), [("margin_characters", -1), ("max_pieces", 0), ("action", "cut")])
def test_settings_of_the_cut_are_checked(field, value):
    from cpt_dist.config import CptConfig
    from cpt_dist.curation_pipeline_config import curation_pipeline_problems

    config = CptConfig(run_dir="run").data.curation
    setattr(config.decontamination, field, value)
    assert [problem.split(":")[0] for problem in curation_pipeline_problems(config)] == [f"decontamination.{field}"]
