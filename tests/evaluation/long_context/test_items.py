"""Prompts: within their budget, the needle where it was wanted, the same bytes for the same seed."""

import pytest
import xxhash

from cpt_dist.evaluation.documents import DocumentEncoder
from cpt_dist.evaluation.long_context.haystack import MAX_SENTENCE_CHARACTERS, Haystack, split_sentences
from cpt_dist.evaluation.long_context.items import TooShortError, make_item
from cpt_dist.evaluation.long_context.tasks import MAKERS, NUM_CANDIDATES
from cpt_dist.long_context_config import TASKS
from tests.helpers.tokenizer import tiny_tokenizer

LENGTH = 3000
TEXT = " ".join(
    f"Chapter {n} tells of the {n * 37 % 101} ships that came to harbour {n * 53 % 97}." for n in range(400)
)
HAYSTACK = Haystack.of_documents([TEXT])
SINGLE_NEEDLE = [
    "niah_single_1",
    "niah_single_2",
    "niah_single_3",
    "niah_multikey_1",
    "niah_multikey_3",
    "passkey",
    "kv",
]


@pytest.fixture(scope="module", params=[False, True], ids=["separator", "bos"])
def encoder(request, tmp_path_factory):
    return DocumentEncoder(tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"), adds_bos=request.param))


def test_every_task_has_a_maker():
    assert tuple(MAKERS) == TASKS


@pytest.mark.parametrize("task", TASKS)
def test_a_prompt_fills_its_budget_and_never_exceeds_it(task, encoder):
    for index in range(3):
        item = make_item(task, LENGTH, index, encoder, HAYSTACK, 0, [0.0, 0.5, 1.0])
        assert item.num_tokens == len(encoder.encode(item.prompt))
        unit = 120 if task in ("niah_multikey_2", "niah_multikey_3", "kv") else 20
        assert LENGTH - unit < item.num_tokens + item.answer_tokens <= LENGTH
        assert len(encoder.text_tokens(item.lead + ", ".join(item.answers))) < item.answer_tokens


@pytest.mark.parametrize("task", SINGLE_NEEDLE)
@pytest.mark.parametrize("depth", [0.0, 0.25, 0.5, 1.0])
def test_the_needle_is_at_the_wanted_depth(task, depth, encoder):
    item = make_item(task, LENGTH, 0, encoder, HAYSTACK, 0, [depth])
    body = item.prompt[item.prompt.index("\n") : item.prompt.rindex("\n")]
    end = body.index(item.answers[0])
    needle = 120 / len(body)
    assert depth - needle < end / len(body) < depth + 3 * needle
    assert item.prompt.encode()[round(item.depth * item.num_tokens) :].decode().find(item.answers[0]) < 200


@pytest.mark.parametrize("task", [task for task in TASKS if task != "fwe"])
def test_the_right_answers_stand_in_the_prompt(task, encoder):
    item = make_item(task, LENGTH, 0, encoder, HAYSTACK, 0)
    assert all(answer in item.prompt for answer in item.answers)
    assert item.candidates[0] in item.answers
    assert len(set(item.candidates)) == len(item.candidates) == NUM_CANDIDATES
    assert not set(item.candidates[1:]) & set(item.answers) or task == "niah_multiquery"


@pytest.mark.parametrize("task", ["niah_multikey_1", "niah_multikey_2", "niah_multikey_3", "kv", "vt", "cwe", "fwe"])
def test_wrong_candidates_stand_in_the_prompt_too(task, encoder):
    item = make_item(task, LENGTH, 1, encoder, HAYSTACK, 0)
    assert all(candidate in item.prompt for candidate in item.candidates)


def test_the_most_frequent_words_are_those_that_are_asked_for(encoder):
    words = make_item("fwe", LENGTH, 0, encoder, HAYSTACK, 0)
    counts = {word: words.prompt.split().count(word) for word in set(words.prompt.split())}
    coded = {word: count for word, count in counts.items() if len(word) == 6 and word.islower()}
    assert tuple(sorted(coded, key=coded.get, reverse=True)[:3]) == words.answers
    common = make_item("cwe", LENGTH, 0, encoder, HAYSTACK, 0)
    counts = {word: common.prompt.split().count(word) for word in set(common.prompt.split()) if "-" in word}
    assert set(sorted(counts, key=counts.get, reverse=True)[:10]) == set(common.answers)


def test_variables_are_assigned_before_they_are_used(encoder):
    item = make_item("vt", LENGTH, 0, encoder, HAYSTACK, 0)
    places = [item.prompt.index(f"VAR {name} =") for name in item.answers]
    assert places == sorted(places)
    assert f"VAR {item.answers[1]} = VAR {item.answers[0]}." in item.prompt


def test_the_same_seed_gives_the_same_bytes_and_another_one_others(encoder):
    for task in TASKS:
        first = make_item(task, LENGTH, 2, encoder, HAYSTACK, 5, [0.3])
        assert first == make_item(task, LENGTH, 2, encoder, HAYSTACK, 5, [0.3])
        assert first.prompt != make_item(task, LENGTH, 2, encoder, HAYSTACK, 6, [0.3]).prompt
        assert first.prompt != make_item(task, LENGTH, 3, encoder, HAYSTACK, 5, [0.3]).prompt


def test_golden_samples(tmp_path):
    encoder = DocumentEncoder(tiny_tokenizer(tmp_path))
    assert make_item("passkey", 330, 0, encoder, HAYSTACK, 0).prompt == GOLDEN_PASSKEY
    digests = {
        task: xxhash.xxh3_64_hexdigest(make_item(task, LENGTH, 0, encoder, HAYSTACK, 0).prompt.encode())
        for task in TASKS
    }
    assert digests == GOLDEN_DIGESTS


def test_a_length_that_the_question_alone_exceeds_is_refused(encoder):
    with pytest.raises(TooShortError, match=r"it needs \d+ tokens for question and needles, and \d+ are there"):
        make_item("niah_multikey_1", 400, 0, encoder, HAYSTACK, 0)


def test_sentences_keep_all_words_and_stay_short():
    text = "One sentence. Another!\n\nA title\n\n" + "word " * 500
    sentences = split_sentences(text)
    assert " ".join(sentences).split() == text.split()
    assert max(map(len, sentences)) <= MAX_SENTENCE_CHARACTERS


GOLDEN_PASSKEY = (
    "There is important information hidden inside a lot of irrelevant text. Find it and memorize it.\n"
    "The grass is green. The sky is blue. The sun is yellow. "
    "The pass key is 92195. Remember it. 92195 is the pass key. "
    "Here we go. There and back again. The grass is green. The\n"
    "What is the pass key? The pass key is"
)
GOLDEN_DIGESTS = {
    "niah_single_1": "8a76d1f0bff68092",
    "niah_single_2": "ad573c04b2e09a97",
    "niah_single_3": "01c8573e7eab309f",
    "niah_multikey_1": "0e1f8a70f8a38e66",
    "niah_multikey_2": "07d6518795358bc5",
    "niah_multikey_3": "61b993bc375812d4",
    "niah_multivalue": "d2c1852c49ae8bc1",
    "niah_multiquery": "77c6262280d1d230",
    "vt": "2eddfe8b86d17ead",
    "cwe": "cfd0fefe7c7a92c3",
    "fwe": "9ca1267b74e2a537",
    "passkey": "4d6b9784620ab309",
    "kv": "92d8b128a849e241",
}
