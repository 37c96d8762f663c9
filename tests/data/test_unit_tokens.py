"""Promises of tokens put together from those of words: always the library's, for tokenizers known to allow it."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from cpt_dist.data import unit_tokens
from cpt_dist.data.tokenizer import DocumentTokenizer
from cpt_dist.data.unit_tokens import UnitTokens, unit_pattern
from tests.helpers.tokenizer import tiny_tokenizer

LLAMA, QWEN = sorted(unit_tokens._EXPRESSIONS, key=len, reverse=True)
PIECES = [
    " ",
    "  ",
    "\n",
    "\n\n",
    "\t",
    "\r\n",
    "\u00a0",
    "\u3000",
    "\u2028",
    "\x85",
    "\x1c",
    "\u180e",
    "\ufeff",
    "a",
    "it",
]
PIECES += [
    "'s",
    "'LL",
    "word",
    "Bär",
    "e\u0301",
    "\u0301",
    "12",
    "3456",
    ".",
    ").\n",
    "...",
    "#",
    "熊は",
    "🐻",
    "ſ",
    "²",
    "_",
    "x" * 70,
]
TRAINING = ["".join(PIECES[at:] + PIECES[:at]) for at in range(len(PIECES))] * 4


def before_bytes(*parts):
    return pre_tokenizers.Sequence([*parts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def cut_by(tokenizer, *parts):
    tokenizer.pre_tokenizer = before_bytes(*parts)


BEFORE = {
    "gpt2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "llama3": before_bytes(pre_tokenizers.Split(Regex(LLAMA), "isolated")),
    "qwen2": before_bytes(pre_tokenizers.Split(Regex(QWEN), "isolated")),
}


def trained(before, normalizer=None):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = before
    if normalizer:
        tokenizer.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(TRAINING, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    return tokenizer


TOKENIZERS = {name: trained(before, normalizers.NFC() if name == "qwen2" else None) for name, before in BEFORE.items()}


@pytest.mark.parametrize("name", BEFORE)
@given(texts=st.lists(st.lists(st.sampled_from(PIECES), max_size=24).map("".join), min_size=1, max_size=4))
@settings(max_examples=80, deadline=None)
def test_units_have_the_tokens_and_offsets_of_the_whole_text(name, texts):
    tokenizer = TOKENIZERS[name]
    units = UnitTokens(tokenizer, unit_pattern(tokenizer), "uint16")
    for _ in range(2):  # the second time all units are known
        for text, found in zip(texts, units.encode(texts, [True] * len(texts)), strict=True):
            whole = tokenizer.encode(text, add_special_tokens=False)
            if found is not None:
                assert list(memoryview(found.ids).cast("H")) == whole.ids
                assert found.ends.tolist() == [end for _, end in whole.offsets]


@pytest.mark.parametrize(
    "change",
    [
        lambda tokenizer: setattr(tokenizer, "pre_tokenizer", pre_tokenizers.Metaspace()),
        lambda tokenizer: setattr(tokenizer, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)),
        lambda tokenizer: setattr(
            tokenizer, "pre_tokenizer", before_bytes(pre_tokenizers.Split(Regex("."), "isolated"))
        ),
        lambda tokenizer: setattr(tokenizer, "normalizer", normalizers.Replace(" ", "_")),
        lambda tokenizer: setattr(tokenizer, "model", models.BPE(dropout=0.1)),
        lambda tokenizer: tokenizer.add_tokens([AddedToken("two words")]),
        lambda tokenizer: tokenizer.add_tokens([AddedToken("<x>", rstrip=True)]),
        lambda tokenizer: tokenizer.add_tokens([AddedToken("<x>", lstrip=True)]),
        lambda tokenizer: tokenizer.add_tokens([AddedToken("<x>", single_word=True)]),
        lambda tokenizer: cut_by(tokenizer, pre_tokenizers.Split(Regex(LLAMA), "merged_with_previous")),
        lambda tokenizer: cut_by(tokenizer, pre_tokenizers.Split(Regex(LLAMA), "isolated", invert=True)),
        lambda tokenizer: cut_by(tokenizer, pre_tokenizers.Split(Regex(LLAMA), "isolated"), pre_tokenizers.Digits()),
        lambda tokenizer: cut_by(tokenizer, pre_tokenizers.Digits()),
        lambda tokenizer: setattr(
            tokenizer,
            "pre_tokenizer",
            pre_tokenizers.Sequence([pre_tokenizers.Split(" ", "removed"), BEFORE["gpt2"]]),
        ),
    ],
)
def test_a_tokenizer_whose_units_depend_on_each_other_is_left_to_the_library(change):
    tokenizer = trained(BEFORE["gpt2"])
    assert unit_pattern(tokenizer) is not None
    change(tokenizer)
    assert unit_pattern(tokenizer) is None


def test_special_tokens_that_would_join_units_are_no_text_and_so_no_reason():
    tokenizer = trained(BEFORE["gpt2"])
    tokenizer.add_special_tokens([AddedToken("<end of text>", lstrip=True, special=True)])
    assert unit_pattern(tokenizer) is not None


def test_what_is_remembered_is_bounded_and_changes_nothing(monkeypatch):
    monkeypatch.setattr(unit_tokens, "MOST_UNITS", 3)
    tokenizer = TOKENIZERS["gpt2"]
    units = UnitTokens(tokenizer, unit_pattern(tokenizer), "uint16")
    text = "a b c d e " + "y" * 100 + " f g h i j k l"
    for _ in range(3):
        (found,) = units.encode([text], [False])
        assert list(memoryview(found.ids).cast("H")) == tokenizer.encode(text).ids
        assert max(map(len, units._ids)) <= unit_tokens.LONGEST_UNIT
    assert len(units._ids) <= len(re.findall(r"\S+", text))
    units.encode(["q r"], [False])
    assert sorted(units._ids) == [" r", "q"]


@pytest.mark.parametrize("text", ["熊" * 50, *(f"a{character} b" for character in unit_tokens._AMBIGUOUS)])
def test_text_without_units_or_with_disputed_white_space_is_left_to_the_library(text):
    tokenizer = TOKENIZERS["gpt2"]
    units = UnitTokens(tokenizer, unit_pattern(tokenizer), "uint16")
    assert units.encode(["a b", text], [False, False])[1] is None
    assert len(unit_tokens._AMBIGUOUS) == 5


def test_new_units_that_begin_with_a_line_end_do_not_touch_each_other():
    tokenizer = TOKENIZERS["llama3"]
    texts = ["\n).", "\nword"]
    assert len(tokenizer.encode("".join(texts)).ids) < sum(len(tokenizer.encode(text).ids) for text in texts)
    found = UnitTokens(tokenizer, unit_pattern(tokenizer), "uint16").encode(texts, [False, False])
    assert [list(memoryview(one.ids).cast("H")) for one in found] == [tokenizer.encode(text).ids for text in texts]


def test_documents_get_the_same_tokens_and_cuts_with_and_without_units(tmp_path, monkeypatch):
    tiny_tokenizer(tmp_path, adds_bos=True)
    texts = ["short one", "a line of words\n\n" * 20 + "# heading\n" + "more  of them\n" * 30, "熊" * 50]
    with_units = DocumentTokenizer(tmp_path)
    monkeypatch.setattr("cpt_dist.data.tokenizer.is_worth_it", lambda: False)
    without = DocumentTokenizer(tmp_path)
    found, expected = (one.encode_with_cuts(texts, 64) for one in (with_units, without))
    assert with_units._units is not None
    assert without._units is None
    assert [(list(tokens), cuts) for tokens, cuts in found] == expected
    assert expected[1][1].paragraphs
    assert expected[1][1].lines
