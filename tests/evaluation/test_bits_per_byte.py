"""Every token is scored once, by the right context, and nothing but the text decides the number."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cpt_dist.evaluation.bits_per_byte import plan_forwards, plan_windows, score_documents, score_tokens
from cpt_dist.evaluation.documents import DocumentEncoder, EvaluationText
from cpt_dist.evaluation.scorers import plain_scorer
from tests.evaluation.tiny import save_tokenizer, text_of, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return DocumentEncoder(save_tokenizer(tmp_path_factory.mktemp("tokenizer"), tiny_tokenizer()))


@pytest.fixture(scope="module")
def byte_encoder(tmp_path_factory):
    """Its tokens are the bytes of the text."""
    return DocumentEncoder(save_tokenizer(tmp_path_factory.mktemp("bytes"), tiny_tokenizer(vocab_size=258)))


@pytest.fixture(scope="module")
def texts():
    generator = np.random.default_rng(0)
    return [EvaluationText(str(i), text_of(generator, words)) for i, words in enumerate([1, 3, 40, 11, 90, 2])]


@given(num_inputs=st.integers(0, 400), window=st.integers(2, 60))
def test_every_prediction_is_scored_once_with_at_least_half_a_window_of_context(num_inputs, window):
    windows = plan_windows(0, num_inputs, window)
    scored = [i for piece in windows for i in range(piece.first, piece.stop)]
    assert scored == list(range(num_inputs))
    for piece in windows:
        assert piece.stop - piece.start == min(window, num_inputs)
        assert piece.start == 0 or piece.first - piece.start >= window - window // 2


@given(counts=st.lists(st.integers(0, 100), max_size=12), window=st.integers(2, 40), batch_tokens=st.integers(1, 90))
def test_forwards_hold_all_windows_within_the_token_budget(counts, window, batch_tokens):
    forwards = plan_forwards(counts, window, batch_tokens)
    together = [piece for forward in forwards for piece in forward]
    assert together == [piece for i, count in enumerate(counts) for piece in plan_windows(i, count, window)]
    for forward in forwards:
        assert len(forward) == 1 or sum(piece.stop - piece.start for piece in forward) <= batch_tokens


def test_the_nll_equals_the_loss_of_transformers_on_the_same_document(model, encoder, texts):
    scores = score_documents(texts, encoder, plain_scorer(model), window=256, batch_tokens=512)
    for text, nll in zip(texts, scores.nll, strict=True):
        ids = torch.from_numpy(encoder.encode(text.text))[None]
        expected = model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        assert nll == pytest.approx(expected, rel=1e-6)


def test_a_sliding_window_scores_each_token_as_a_forward_over_that_window_does(model, encoder, texts):
    window = 16
    scores = score_documents(texts, encoder, plain_scorer(model), window=window, batch_tokens=64)
    for text, nll in zip(texts, scores.nll, strict=True):
        tokens = encoder.encode(text.text)
        expected, end = 0.0, 0
        while end < len(tokens) - 1:
            previous, end = end, min(len(tokens) - 1, end + (window // 2 if end else window))
            start = max(0, end - window)
            logits = model(input_ids=torch.from_numpy(tokens[start:end])[None]).logits[0].double()
            labels = torch.from_numpy(tokens[start + 1 : end + 1])
            losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
            expected += losses[previous - start :].sum().item()
        assert nll == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("batch_tokens", [1, 33, 100000])
def test_the_number_does_not_depend_on_the_batch(model, encoder, texts, batch_tokens):
    reference = score_documents(texts, encoder, plain_scorer(model), window=32, batch_tokens=64)
    other = score_documents(texts, encoder, plain_scorer(model), window=32, batch_tokens=batch_tokens)
    np.testing.assert_allclose(other.nll, reference.nll, rtol=1e-6)


@pytest.mark.parametrize("world_size", [2, 3, 50])
def test_ranks_make_equally_many_forwards_and_their_sums_are_those_of_one(model, encoder, texts, world_size):
    reference = score_documents(texts, encoder, plain_scorer(model), window=32, batch_tokens=64)
    encoded = [encoder.encode(text.text) for text in texts]
    num_forwards, parts = [], []
    for rank in range(world_size):
        calls = []

        def score(*tensors, calls=calls):
            calls.append(tensors)
            return plain_scorer(model)(*tensors)

        parts.append(score_tokens(encoded, score, window=32, batch_tokens=64, rank=rank, world_size=world_size))
        num_forwards.append(len(calls))
    assert len(set(num_forwards)) == 1
    np.testing.assert_allclose(np.sum(parts, axis=0), reference.nll, rtol=1e-12)


def test_the_reduction_over_ranks_is_applied_to_the_sums(model, encoder, texts):
    once = score_documents(texts, encoder, plain_scorer(model), window=32, batch_tokens=64)
    twice = score_documents(
        texts, encoder, plain_scorer(model), window=32, batch_tokens=64, sum_over_ranks=lambda values: 2 * values
    )
    np.testing.assert_array_equal(twice.nll, 2 * once.nll)


def uniform_over_bytes(bits: float):
    """A scorer by which every token costs `bits`."""
    return lambda input_ids, labels, position_ids, cu_seqlens: torch.full(
        labels.shape, bits * math.log(2), dtype=torch.float64
    )


def test_a_uniform_code_of_bytes_has_eight_bits_per_byte(byte_encoder, texts):
    scores = score_documents(texts, byte_encoder, uniform_over_bytes(8.0), window=16, batch_tokens=64)
    assert scores.num_tokens.tolist() == scores.num_bytes.tolist() == [len(text.text.encode()) for text in texts]
    assert scores.bits_per_byte == pytest.approx(8.0, rel=1e-12)


def test_the_summary_holds_totals(byte_encoder, texts):
    summary = score_documents(texts, byte_encoder, uniform_over_bytes(8.0), window=16, batch_tokens=64).summary()
    num_bytes = sum(text.num_bytes for text in texts)
    assert summary == {
        "bits_per_byte": pytest.approx(8.0),
        "nll": pytest.approx(8 * math.log(2) * num_bytes),
        "bytes": num_bytes,
        "tokens": num_bytes,
        "documents": len(texts),
    }


def test_positions_restart_and_labels_follow_their_inputs_in_every_piece(encoder, texts):
    encoded = [encoder.encode(text.text) for text in texts]

    num_labels = []

    def check(input_ids, labels, position_ids, cu_seqlens):
        num_labels.append(int((labels != -100).sum()))
        for start, stop in itertools.pairwise(cu_seqlens.tolist()):
            assert position_ids[start:stop].tolist() == list(range(stop - start))
            counted = labels[start : stop - 1] != -100
            assert torch.equal(labels[start : stop - 1][counted], input_ids[start + 1 : stop][counted])
        return torch.zeros(len(labels))

    score_tokens(encoded, check, window=16, batch_tokens=64)
    assert sum(num_labels) == sum(len(tokens) - 1 for tokens in encoded)


def test_nothing_to_score_is_refused(encoder):
    with pytest.raises(ValueError, match="no documents"):
        score_documents([], encoder, uniform_over_bytes(8.0), window=16, batch_tokens=64)
