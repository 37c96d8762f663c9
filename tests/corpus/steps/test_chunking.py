from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from cpt_dist.corpus.normalise import document_id
from cpt_dist.corpus.step import CuratedDocument, Origin
from cpt_dist.corpus.steps.chunking import Chunk, cut_points
from cpt_dist.curation_config import ChunkingConfig


def chunks(text: str, size: int, content: str = "prose", min_fill: float = 0.5) -> list[CuratedDocument]:
    given_document = CuratedDocument(
        document_id(text), text, "books", Origin("b", 0), labels={"content": content}, counts={"citations": 3}
    )
    return list(Chunk(ChunkingConfig(max_characters=size, min_fill=min_fill))(given_document))


TEXTS = st.lists(
    st.sampled_from(
        ["\n\n", "\n", ". ", " ", "# Heading\n", "U.S. v. Smith", "word", "e\u0301", "中文。", "x" * 30, "\t"]
    ),
    max_size=80,
).map("".join)


@settings(max_examples=80, deadline=None)
@given(TEXTS, st.integers(1, 60), st.sampled_from(["prose", "code", "table"]), st.sampled_from([0.0, 0.5, 0.9]))
def test_chunks_joined_are_the_document_and_none_is_too_long(text, size, content, min_fill):
    # E8: only the first chunk was kept. E9: a sentence longer than the limit stayed whole.
    pieces = chunks(text, size, content, min_fill)
    assert "".join(piece.text for piece in pieces) == text
    assert all(0 < len(piece.text) <= size for piece in pieces) or not text
    if len(pieces) > 1:
        assert [piece.offset for piece in pieces] == [
            sum(len(before.text) for before in pieces[:place]) for place in range(len(pieces))
        ]
        assert {piece.parent for piece in pieces} == {document_id(text)}
        assert len({piece.id for piece in pieces}) == len(pieces)


def test_a_short_document_stays_as_it_is():
    (only,) = chunks("short", 100)
    assert (only.text, only.parent, only.offset) == ("short", None, 0)


def test_the_best_seam_is_chosen():
    intro = "An introduction. " * 5
    text = f"{intro}\n\nSome paragraph here.\nAnd a line.\n\n# Scope\n\n{'Words of the scope. ' * 10}"
    assert chunks(text, 150)[1].text.startswith("# Scope")
    without = text.replace("# Scope", "Scope")
    assert chunks(without, 150, min_fill=0.3)[1].text.startswith(("Scope", "Words"))
    lines = "\n".join(["a line of text"] * 20)
    assert all(piece.text.endswith("\n") for piece in chunks(lines, 100)[:-1])


def test_sentences_end_where_they_end():
    # E9: a text was cut after 'U.S. v.'.
    text = (
        "The case of U.S. v. Smith was decided by Mr. Justice Gray in 1901 under Art. 3 of the law. Nobody appealed it."
    )
    first, second = (piece.text for piece in chunks(text, 100))
    assert first == text[: text.index("Nobody")]
    assert second == "Nobody appealed it."
    inside = chunks("He met Dr. Smith of the U.S. Army and others there without", 35, min_fill=0.1)[0].text
    assert not inside.endswith(("Dr. ", "U.S. "))


def test_code_is_cut_between_top_level_blocks():
    block = "def function_{n}(x):\n    y = x + 1\n\n    return y\n\n\n"
    text = "".join(block.replace("{n}", str(n)) for n in range(10))
    pieces = chunks(text, 130, "code")
    assert all(piece.text.startswith("def ") for piece in pieces)


def test_a_letter_keeps_its_accent():
    text = "e\u0301" * 40
    assert all(not piece.text.startswith("\u0301") for piece in chunks(text, 7))


def test_counts_are_not_multiplied_and_equal_chunks_of_two_documents_differ():
    text = "A sentence that is here. " * 20
    pieces = chunks(text, 100)
    assert [piece.counts.get("citations", 0) for piece in pieces] == [3] + [0] * (len(pieces) - 1)
    other = chunks("Another start of it.\n\n" + text, 100)
    assert not {piece.id for piece in pieces} & {piece.id for piece in other}


def test_a_long_text_is_cut_in_time_that_grows_with_its_length():
    text = "x" * 300_000
    assert len(cut_points(text, "prose", 1000, 0.5)) == 299
