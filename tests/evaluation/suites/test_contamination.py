"""A planted leak is found, in shards as prepare writes them, and nothing else is."""

import random
import string
from dataclasses import replace

import numpy as np
import pytest

from cpt_dist.config import CptConfig
from cpt_dist.corpus.ngrams import NgramIndex, words_of
from cpt_dist.data.prepare import prepare
from cpt_dist.evaluation.suites import contamination
from cpt_dist.evaluation.suites.compare import Judge, compare_scores
from cpt_dist.evaluation.suites.contamination import search
from cpt_dist.evaluation.suites.run import Answers, Questions, compare_answers
from cpt_dist.evaluation.suites.suite_file import Suite
from cpt_dist.evaluation.suites.tasks import SuiteScores
from tests.helpers.corpora import corpus_config


def sentence(rng, num_words=20):
    return " ".join("".join(rng.choices(string.ascii_lowercase, k=5)) for _ in range(num_words))


@pytest.fixture(scope="module")
def leaked(tmp_path_factory):
    """Configuration of prepared shards, and items of which those with the numbers 2 and 5 are in the training text."""
    folder = tmp_path_factory.mktemp("leak")
    rng = random.Random(0)
    items = [sentence(rng) for _ in range(8)]
    plain = [sentence(rng, 60) for _ in range(30)]
    shouted = items[5].upper().replace(" ", ", ")
    documents = [*plain[:10], f"{plain[10]} {items[2]} {plain[11]}", *plain[12:20], f"{shouted}!", *plain[20:]]
    config = corpus_config(folder, {"mine": documents}, held_out_fraction=0.0)
    prepare(config)
    return config, items


def run_search(config, texts, n=13):
    from tokenizers import Tokenizer

    from cpt_dist.data.shards import Source

    source = Source.open(f"{config.data.shards}/mine")
    decode = Tokenizer.from_file(f"{config.data.tokenizer}/tokenizer.json").decode_batch
    index = NgramIndex(texts, n)
    return search([source], index, decode, n), index


def test_a_planted_leak_is_found_and_nothing_else(leaked):
    config, items = leaked
    found, _ = run_search(config, items)
    assert sorted(found.items) == [2, 5]
    assert found.items[2].text in " ".join(words_of(items[2]))
    assert (found.items[2].source, found.documents) == ("mine", 30)
    assert len(found.items[2].document) == 32


def test_a_leak_across_the_border_of_two_pieces_is_found(leaked, monkeypatch):
    config, items = leaked
    for size in (300, 377, 420):
        monkeypatch.setattr(contamination, "PIECE_TOKENS", size)
        assert sorted(run_search(config, items)[0].items) == [2, 5]


def test_twelve_words_in_a_row_are_not_thirteen(leaked):
    config, items = leaked
    words = items[2].split()
    changed = " ".join([*words[:12], "other", *words[13:]])
    assert list(run_search(config, [changed])[0].items) == []
    assert list(run_search(config, [changed], n=12)[0].items) == [0]


def test_short_items_are_found_whole_or_left_unchecked(leaked):
    config, items = leaked
    words = items[2].split()
    found, index = run_search(config, [" ".join(words[:9]), " ".join(words[:7])])
    assert (list(found.items), index.unchecked) == ([0], [1])


def test_the_wording_of_a_task_is_no_leak():
    wording = "choose the word that fits the following definition best and answer with one letter only"
    texts = [f"{wording} item{n} {sentence(random.Random(n), 6)}" for n in range(30)]
    index = NgramIndex(texts, 13)
    assert list(index.items_in(f"Instructions: {wording}.")) == []
    assert {item for item, _ in index.items_in(texts[3])} == {3}


def test_characters_of_cjk_are_words():
    assert words_of("今天 Don't STOP") == ["今", "天", "don", "t", "stop"]


def test_results_are_given_with_and_without_the_items_found(leaked):
    config, items = leaked
    config = replace(config, evaluation=replace(CptConfig().evaluation, bootstrap=200))
    suites = [Suite("words", "language"), Suite("gone", "language")]

    def scores(values):
        return SuiteScores(
            keys=[str(n) for n in range(8)],
            metric="acc",
            values=np.array(values, dtype=float),
            chance=np.zeros(8),
            texts=items,
        )

    gone = SuiteScores(not_run="no data")
    base = Answers(suites={"words": scores([0] * 8), "gone": gone})
    adapted = Answers(suites={"words": scores([0, 0, 1, 0, 0, 1, 0, 0]), "gone": gone})
    found = compare_answers(config, Questions(suites, {}, []), base, adapted)
    result, missing = found.suites
    assert result.contaminated == 2
    assert (result.comparison.gain.value, result.clean.gain.value) == (0.25, 0.0)
    assert (result.comparison.items, result.clean.items) == (8, 6)
    assert (missing.contaminated, missing.clean) == (None, None)
    assert [(suite, item) for suite, item, _ in found.searched.evidence] == [("words", "2"), ("words", "5")]


def test_without_shards_nothing_was_searched(leaked):
    config, items = leaked
    empty = replace(config, data=replace(config.data, shards="/nowhere"))
    found = compare_answers(empty, Questions([], {}, []), Answers(), Answers())
    assert found.searched is None
    suite = Suite("words", "language")
    scores = SuiteScores(keys=["0"], metric="acc", values=np.zeros(1), chance=np.zeros(1), texts=items[:1])
    answers = Answers(suites={"words": scores})
    found = compare_answers(empty, Questions([suite], {}, []), answers, answers)
    assert (found.searched.sources, found.searched.missing) == ([], ["mine"])
    assert found.suites[0].contaminated is None
    assert compare_scores(suite, scores, scores, Judge(0.95, 100, 0)).contaminated is None
