"""Planted truths: an oracle gets everything, a guesser gets chance, a forgetful one keeps what it keeps."""

import random
import re

import numpy as np
import pytest

from cpt_dist.evaluation.documents import DocumentEncoder
from cpt_dist.evaluation.long_context.answering import Answer
from cpt_dist.evaluation.long_context.haystack import Haystack
from cpt_dist.evaluation.long_context.suite import (
    CHOSEN,
    WRITTEN,
    ItemScores,
    SuiteSettings,
    compare_suites,
    effective_length,
    make_items,
    score_items,
)
from cpt_dist.evaluation.statistics import wilson_interval
from cpt_dist.long_context_config import TASKS
from tests.helpers.tokenizer import tiny_tokenizer

SETTINGS = SuiteSettings(TASKS, (2000,), 2000, 10, (0.0, 0.5, 1.0), 0)
NOISE = Haystack.noise()


@pytest.fixture(scope="module")
def groups(tmp_path_factory):
    return make_items(SETTINGS, DocumentEncoder(tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))), NOISE)[0]


def oracle(item):
    return Answer(f"They are {', '.join(item.answers).upper()}.", (0.0, *[-5.0] * (len(item.candidates) - 1)))


def guesser(seed):
    generator = random.Random(seed)
    return lambda item: Answer("I don't know.", tuple(generator.random() for _ in item.candidates))


def copier(item):
    """Writes what stands behind the words of the question in the prompt: solves tasks by reading alone."""
    key = re.search(r"for (\S+) mentioned", item.prompt)[1]
    return Answer(re.search(rf"for {key} is: ([\w-]+)", item.prompt)[1], (0.0, -1.0, -1.0, -1.0))


def values(scores, way):
    return {one.task: float(one.scores[way].mean()) for one in scores}


def test_an_oracle_gets_everything(groups):
    scores = score_items(groups, oracle, SETTINGS.depths)
    assert values(scores, WRITTEN) == values(scores, CHOSEN) == dict.fromkeys(TASKS, 1.0)


def test_a_guesser_gets_chance(groups):
    rounds = [score_items(groups, guesser(seed), SETTINGS.depths) for seed in range(8)]
    chosen = np.concatenate([one.scores[CHOSEN] for scores in rounds for one in scores])
    assert chosen.mean() == pytest.approx(0.25, abs=0.05)
    assert set(values(rounds[0], WRITTEN).values()) == {0.0}


def test_the_prompt_alone_holds_the_answer(groups):
    readable = [group for group in groups if group[0].task in ("niah_single_1", "niah_multikey_1", "niah_multikey_3")]
    assert set(values(score_items(readable, copier, SETTINGS.depths), WRITTEN).values()) == {1.0}


def scored(task, length, share, way=CHOSEN, items=100):
    right = np.arange(items) < round(share * items)
    return ItemScores(task, length, tuple(map(str, range(items))), (0.5,) * items, 0, {way: right.astype(float)})


def compared(base, adapted, lengths, way=CHOSEN, items=100):
    settings = SuiteSettings(("kv",), lengths, lengths[0], 100, (0.5,), 0)
    pairs = [
        [scored("kv", length, share, way, items) for length, share in zip(lengths, one, strict=True)]
        for one in (base, adapted)
    ]
    return compare_suites(*pairs, {}, settings, 500, 0.95)


def test_scores_are_set_in_relation_to_the_models_own_at_its_native_length():
    rows = compared((1.0, 0.4, 0.25), (0.85, 0.79, 0.79), (1024, 2048, 4096))
    assert [row.base_kept for row in rows] == pytest.approx([1.0, 0.2, 0.0])
    assert [row.adapted_kept for row in rows] == pytest.approx([1.0, 0.9, 0.9])
    assert [row.outcome for row in rows] == ["worse", "improved", "improved"]
    assert effective_length(rows, "kv", CHOSEN, "base", 1024) == 1024
    assert effective_length(rows, "kv", CHOSEN, "adapted", 1024) == 4096


def test_a_task_that_was_never_done_has_nothing_to_keep():
    rows = compared((0.26, 0.3), (0.26, 0.9), (1024, 2048))
    assert [row.base_kept for row in rows] == [None, None]
    assert effective_length(rows, "kv", CHOSEN, "adapted", 1024) is None


def test_what_does_not_fit_is_not_run(tmp_path):
    settings = SuiteSettings(("niah_multivalue", "passkey"), (400,), 400, 2, (0.5,), 0)
    groups, reasons = make_items(settings, DocumentEncoder(tiny_tokenizer(tmp_path)), NOISE)
    scores = score_items(groups, oracle, settings.depths)
    rows = compare_suites(scores, scores, reasons, settings, 100, 0.95)
    assert [(row.task, row.base is None) for row in rows if row.way == CHOSEN] == [
        ("niah_multivalue", True),
        ("passkey", False),
    ]
    assert "tokens for question and needles" in rows[0].not_run


def test_wilson_intervals_enclose_their_share_for_every_number_of_items():
    for items in range(1, 100):  # rounding alone put the lower bound of no hit above 0 for 3, 6, 7, 12, … items
        assert wilson_interval(0.0, items, 0.95)[0] == 0.0
        assert wilson_interval(1.0, items, 0.95)[1] == 1.0


def test_a_task_that_no_answer_hits_has_nothing_to_keep():
    rows = compared((0.0, 0.0), (0.0, 0.0), (1024, 2048), WRITTEN, items=3)
    assert [row.base_kept for row in rows] == [None, None]


def test_wilson_intervals():
    assert wilson_interval(0.5, 20, 0.95) == pytest.approx((0.2993, 0.7007), abs=1e-4)
    assert wilson_interval(0.0, 10, 0.95) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson_interval(1.0, 10, 0.95) == pytest.approx((0.7225, 1.0), abs=1e-4)
    with pytest.raises(ValueError, match="no items"):
        wilson_interval(0.5, 0, 0.95)
