"""The sample of raw files and what tokenizer and words say about it, against exact counts."""

import random

import numpy as np
import pytest

from cpt_dist.diagnosis.corpus_sample import sample_corpus
from cpt_dist.diagnosis.words_and_tokens import Overlap, count_tokens, word_overlap
from cpt_dist.errors import UserError
from cpt_dist.evaluation.documents import DocumentEncoder
from tests.helpers.corpora import write_jsonl
from tests.helpers.tiny_run import WORDS, write_tokenizer


def texts_of(num_documents, first_word=0, num_words=50, seed=0):
    rng = random.Random(seed)
    pool = WORDS[first_word : first_word + num_words]
    return [" ".join(rng.choices(pool, k=rng.randint(3, 60))) for _ in range(num_documents)]


def sample_of(folder, texts, sample_bytes=10**6, name="a"):
    return sample_corpus([str(write_jsonl(folder / f"{name}.jsonl", texts))], "domain", "text", sample_bytes)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return DocumentEncoder(folder)


def counted(sample, encoder):
    return count_tokens(sample, encoder, num_resamples=500, confidence=0.95, seed=[1])


def test_a_sample_that_holds_everything_counts_exactly(tmp_path, encoder):
    texts = texts_of(100)
    sample = sample_of(tmp_path, texts)
    assert sample.is_whole
    counts = counted(sample, encoder)
    assert counts.volume.value == sum(len(text.split()) for text in texts)
    assert counts.volume.low is None
    assert counts.per_word == 1.0


def test_a_small_sample_knows_the_volume_within_its_interval(tmp_path, encoder):
    texts = texts_of(2000)
    sample = sample_of(tmp_path, texts, sample_bytes=20_000)
    assert not sample.is_whole
    assert sum(one.num_bytes for one in sample.documents) <= 20_000
    volume = counted(sample, encoder).volume
    assert volume.low < sum(len(text.split()) for text in texts) < volume.high
    assert volume.value == pytest.approx(sum(len(text.split()) for text in texts), rel=0.02)


def test_copies_are_counted_once_also_in_a_small_sample(tmp_path):
    texts = texts_of(500)
    once = sum(len(text) for text in texts)
    thrice = sample_of(tmp_path, texts * 3)
    assert thrice.duplicate_share == pytest.approx(2 / 3)
    assert thrice.different_bytes == once
    assert sample_of(tmp_path, texts * 3, 5_000).different_bytes == pytest.approx(once)


def test_the_sample_hangs_on_the_documents_and_not_on_their_order(tmp_path):
    texts = texts_of(500)
    first = sample_of(tmp_path, texts, 5_000)
    assert first.documents == sample_of(tmp_path, texts[::-1], 5_000).documents
    assert [one.id for one in first.documents] == sorted(one.id for one in first.documents)


def test_records_without_text_are_counted_and_files_of_them_refused(tmp_path):
    sample = sample_of(tmp_path, ["one two", b'{"other": 1}', b"no json", b'{"text": "  "}'])
    assert (sample.num_documents, sample.num_without_text) == (1, 3)
    with pytest.raises(UserError, match="hold 1 records without usable text under 'text'"):
        sample_of(tmp_path, [b'{"other": 1}'])


def overlap_of(tmp_path, encoder, domain, general):
    samples = sample_of(tmp_path, domain, name="d"), sample_of(tmp_path, general, name="g")
    return word_overlap(*samples, tuple(counted(sample, encoder) for sample in samples))


def test_text_of_the_same_kind_overlaps_like_general_text_with_itself(tmp_path, encoder):
    found = overlap_of(tmp_path, encoder, texts_of(300, seed=1), texts_of(600, seed=2))
    assert found.relative == pytest.approx(1.0, abs=0.02)


def test_half_of_the_words_shared_is_an_overlap_of_a_half(tmp_path, encoder):
    found = overlap_of(tmp_path, encoder, texts_of(300, first_word=25), texts_of(600, first_word=0))
    assert found == Overlap(0.5, 1.0, found.num_words)


def test_few_words_and_text_without_spaces_give_no_overlap(tmp_path, encoder):
    assert "only" in overlap_of(tmp_path, encoder, texts_of(10), texts_of(600))
    chinese = ["自然语言处理是人工智能领域的一个重要方向" * 3] * 2 + ["连续预训练使模型适应新的领域文本内容" * 4]
    assert "without spaces" in overlap_of(tmp_path, encoder, chinese, texts_of(600))
    assert counted(sample_of(tmp_path, chinese), encoder).per_word is None


def test_tokens_per_byte_have_an_interval_around_them(tmp_path, encoder):
    per_byte = counted(sample_of(tmp_path, texts_of(200)), encoder).per_byte
    assert per_byte.low < per_byte.value < per_byte.high
    assert np.isclose(per_byte.value, 1 / 5, atol=0.01)  # words of four letters and a blank


def test_no_document_is_kept_before_one_with_a_smaller_hash(tmp_path):
    rng = random.Random(4)
    texts = [" ".join(rng.choices(WORDS, k=rng.choice([2, 5, 400]))) for _ in range(400)]
    everything = [one.id for one in sample_of(tmp_path, texts).documents]
    for size in (3_000, 5_000, 9_000):
        kept = [one.id for one in sample_of(tmp_path, texts, size).documents]
        assert kept == everything[: len(kept)]
