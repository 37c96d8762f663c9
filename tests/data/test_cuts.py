"""Promises of structural cuts: recorded at the right tokens, cheap, used where they are in reach, and nothing lost."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from cpt_dist.config import SourceConfig
from cpt_dist.data.best_fit import BestFit, StructuralFit, pack_shard
from cpt_dist.data.cuts import MIN_APART_TOKENS, find_cuts
from cpt_dist.data.plans import make_plan
from cpt_dist.data.prepare import prepare
from cpt_dist.data.remote import FetchSettings, RemoteFolder
from cpt_dist.data.shards import Source
from cpt_dist.data.tokenizer import DocumentTokenizer
from cpt_dist.data.verify import main as verify_main
from cpt_dist.data.views import views_of
from cpt_dist.errors import UserError
from cpt_dist.strata_config import StrataConfig
from tests.helpers.corpora import corpus_config
from tests.helpers.file_server import file_server
from tests.helpers.memory_sources import MemorySource
from tests.helpers.tokenizer import tiny_tokenizer

WORDS = ["der", "Bär", "läuft", "熊は走る", "🐻", "quickly", "over", "the", "(old)", "bridge"]


def paragraph(number, num_words=12):
    return " ".join(WORDS[(number * 5 + at * 7) % len(WORDS)] for at in range(num_words))


TEXT = "\n\n".join("\n".join(paragraph(3 * n + line) for line in range(3)) for n in range(8))
"""Eight paragraphs of three lines; characters of one to four bytes."""


def byte_pairs(folder):
    """A trained byte-level BPE, whose tokens cross characters and hold blanks, in the place of the tiny one's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=280, special_tokens=["<|end|>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator([TEXT.replace("\n", "\n   ")], trainer)
    tiny_tokenizer(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def cut_texts(tokenizer, text, min_tokens=64):
    """The text in pieces as cut at the paragraphs, and at all places."""
    ((tokens, cuts),) = tokenizer.encode_with_cuts([text], min_tokens)
    tokens = list(tokens)
    assert tokens == tokenizer.encode_batch([text])[0]
    both = []
    for places in (cuts.paragraphs, sorted(cuts.paragraphs + cuts.lines)):
        bounds = [0, *places, len(tokens)]
        pieces = [np.array(tokens[a:b]) for a, b in pairwise(bounds)]
        both.append(tokenizer.decode_batch(pieces))
    return both


@pytest.mark.parametrize("kind", ["bytes", "bytes with BOS", "byte pairs"])
def test_places_are_where_paragraphs_and_lines_end_also_with_bos_and_many_bytes(tmp_path, kind):
    make = byte_pairs if kind == "byte pairs" else lambda folder: tiny_tokenizer(folder, adds_bos="BOS" in kind)
    tokenizer = DocumentTokenizer(make(tmp_path))
    paragraphs, lines = cut_texts(tokenizer, TEXT)
    assert [piece.strip() for piece in paragraphs] == TEXT.split("\n\n")
    assert [piece.strip() for piece in lines] == TEXT.replace("\n\n", "\n").split("\n")
    assert "".join(lines) == TEXT
    assert not any(piece[0].isspace() for piece in lines)


def test_indented_lines_are_cut_within_the_blanks(tmp_path):
    text = TEXT.replace("\n", "\n   ")
    _, lines = cut_texts(DocumentTokenizer(byte_pairs(tmp_path)), text)
    assert [piece.strip() for piece in lines] == TEXT.replace("\n\n", "\n").split("\n")
    assert all(len(piece) - len(piece.lstrip()) <= 1 for piece in lines)  # " der" is one token


def test_a_heading_begins_a_piece_and_stays_with_its_text(tmp_path):
    section = "## A heading of some length, long enough\n\n" + "x" * 60
    text = ("y" * 50 + "\n" + section + "\n\n") * 3
    paragraphs, _ = cut_texts(DocumentTokenizer(tiny_tokenizer(tmp_path)), text)
    assert [piece.strip() for piece in paragraphs] == ["y" * 50, section] * 3


def test_places_keep_apart_and_the_paragraph_goes_before_the_line():
    text = "aaaa\n" * 20 + "\n" + "aaaa\n" * 20  # a token a character
    cuts = find_cuts(text, np.arange(1, len(text) + 1))
    every = [0, *sorted(cuts.paragraphs + cuts.lines), len(text)]
    assert min(b - a for a, b in pairwise(every)) >= MIN_APART_TOKENS
    assert cuts.paragraphs == [101]


def test_a_token_across_a_break_is_no_place():
    text = "a" * 50 + "\n\n" + "b" * 50
    ends = np.array([*range(1, 50), 53, *range(54, 103)])  # one token is "a", both line ends and "b"
    assert find_cuts(text, ends).paragraphs == []


@st.composite
def shards_with_places(draw):
    lengths = draw(st.lists(st.integers(0, 400), min_size=1, max_size=8))
    place = st.integers(1, max(1, sum(lengths) - 1))
    paragraphs, lines = draw(st.sets(place, max_size=20)), draw(st.sets(place, max_size=20))
    return lengths, (sorted(paragraphs), sorted(lines - paragraphs))


@given(shard=shards_with_places(), seq_len=st.integers(2, 120), data=st.data())
@settings(max_examples=40, deadline=None)
def test_every_token_is_in_one_row_and_cuts_lie_at_the_last_place_in_reach(shard, seq_len, data):
    lengths, places = shard
    chosen = sorted(data.draw(st.sets(st.integers(0, len(lengths) - 1))))
    source = MemorySource("a", [lengths], selected=[chosen])
    source.places = [places]
    plan = StructuralFit.of(source, seq_len)
    rows = [plan.row(index) for index in range(plan.num_rows)]
    assert all(0 < row.num_tokens <= seq_len for row in rows)
    spans = sorted(span for row in rows for span in row.spans)
    offsets = source.doc_offsets(0).astype(int)
    expected = [at for number in chosen for at in range(offsets[number], offsets[number + 1])]
    assert [at for span in spans for at in range(*span)] == expected
    if any(places):
        for number in chosen:
            check_cuts(*offsets[number : number + 2].tolist(), [stop for _, stop in spans], places, seq_len)


def check_cuts(begin, end, stops, places, seq_len):
    """Cuts of a document as the rule of docs/data.md has them; pieces that meet again in a row are no cut."""
    allowed = set()
    while end - begin > seq_len:
        reach = [[at for at in level if begin + seq_len / 2 <= at <= begin + seq_len] for level in places]
        begin = max(reach[0] or reach[1] or [begin + seq_len])
        allowed.add(begin)
    assert {stop for stop in stops if begin < stop < end} <= allowed


def test_shards_without_places_are_packed_as_best_fit_packs_them():
    source = MemorySource("a", [[600] * 30 + [9000, 40]])
    structural, best_fit = StructuralFit.of(source, 1000), BestFit.of(source, 1000)
    assert structural.num_rows == best_fit.num_rows
    assert all(structural.row(n) == best_fit.row(n) for n in range(best_fit.num_rows))


def test_cuts_are_counted_by_where_they_lie():
    source = MemorySource("a", [[300, 10]])
    source.places = [([90], [170])]  # pieces 0-90, 90-170, 170-270, 270-300
    assert StructuralFit.of(source, 100).count_cuts(source) == (1, 1, 1)


SHORT = [f"document number {index}" for index in range(20)]


def prepared(folder, texts, **data):
    config = corpus_config(folder, {"law": texts}, held_out_fraction=0.0, **data)
    prepare(config)
    return config, Source.open(folder / "shards" / "law")


def test_shards_of_short_documents_are_the_bytes_that_they_were_without_places(tmp_path):
    for name, least in (("with", 64), ("without", 0)):
        prepare(corpus_config(tmp_path, {"law": SHORT}, cut_min_tokens=least, shards=str(tmp_path / name)))
    first, second = ((tmp_path / name / "law" / "shard-00000.safetensors").read_bytes() for name in ("with", "without"))
    assert first == second


def test_long_documents_are_cut_at_their_paragraphs_in_folder_url_and_strata_alike(tmp_path):
    _, local = prepared(tmp_path, [*SHORT, TEXT, TEXT[50:], TEXT[99:]], cut_min_tokens=64)
    plan = make_plan(local, 512, "structural")
    counts = plan.count_cuts(local)
    assert counts.paragraphs > 4
    assert (counts.lines, counts.neither) == (0, 0)
    assert make_plan(local, 512, "best_fit").count_cuts(local).neither > 4
    assert len(list((tmp_path / "shards" / "law" / "plans").iterdir())) == 2
    with file_server(tmp_path / "shards") as (url, _):
        far = Source.open(RemoteFolder(f"{url}/law", FetchSettings(tmp_path / "cache")))
        remote = make_plan(far, 512, "structural")
        assert [remote.row(n) for n in range(remote.num_rows)] == [plan.row(n) for n in range(plan.num_rows)]
    strata = StrataConfig(by="length", edges=[100.0])
    views = views_of([local], {"law": SourceConfig(raw=[], strata=strata)})
    long = max(views, key=lambda view: view.num_tokens)
    assert make_plan(long, 512, "structural").count_cuts(long) == counts
    assert verify_main([f"shards={tmp_path / 'shards'}"]) == 0


def test_other_places_are_refused_and_a_folder_from_before_there_were_any_is_accepted(tmp_path, monkeypatch):
    from cpt_dist.data.prepare_task import Task

    with monkeypatch.context() as before:
        before.setattr(Task, "_cut_settings", lambda task: {})
        config, old = prepared(tmp_path, [TEXT])
    assert [places.size for places in old.cuts(0)] == [0, 0]
    (done,) = prepare(config)
    assert done.was_complete
    other = tmp_path / "other"
    config, _ = prepared(other, [TEXT])
    config.data.cut_min_tokens = 100
    with pytest.raises(UserError, match=r"pipeline\.cut_min_tokens was 512 and is now 100"):
        prepare(config)


@pytest.mark.parametrize("section", ["paragraph_cuts", "line_cuts"])
def test_verify_names_a_damaged_section_and_places_outside_the_shard(section):
    from cpt_dist.data.shard_check import content_problems

    tensors = {"doc_offsets": np.array([0, 9], dtype=np.uint64), "tokens": np.zeros(9, dtype=np.uint16)}
    for places in ([9], [0, 3], [4, 3]):
        (problem,) = content_problems({**tensors, section: np.array(places, dtype=np.uint32)}, {"tokens": 9}, 10)
        assert section in problem
    assert not content_problems({**tensors, section: np.array([3, 8], dtype=np.uint32)}, {"tokens": 9}, 10)


def test_pieces_keep_half_a_row():
    places = (np.array([49, 160]), np.array([], dtype=np.int64))
    _, start, stop = pack_shard(np.array([[0, 260]]), 100, places)
    assert sorted(zip(start.tolist(), stop.tolist(), strict=True)) == [(0, 100), (100, 160), (160, 260)]


def test_a_paragraph_goes_before_a_later_line():
    _, start, stop = pack_shard(np.array([[0, 150]]), 100, (np.array([60]), np.array([90])))
    assert sorted(zip(start.tolist(), stop.tolist(), strict=True)) == [(0, 60), (60, 150)]
