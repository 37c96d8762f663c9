"""Loss by position: a partition of the loss that transformers computes, and planted shapes are found."""

import itertools

import numpy as np
import pytest
import torch

from cpt_dist.evaluation.bits_per_byte import score_tokens
from cpt_dist.evaluation.long_context.positions import (
    PositionScores,
    bucket_borders,
    changes,
    curve,
    score_positions,
)
from cpt_dist.evaluation.scorers import packed_scorer, plain_scorer
from tests.evaluation.tiny import save_model, tiny_model

BORDERS = (0, 64, 128, 256, 512)
RESAMPLING = (400, 0.95, 0)


def documents(*lengths, seed=0):
    generator = np.random.default_rng(seed)
    return [generator.integers(2, 300, length + 1) for length in lengths]


def planted(means, num_documents=30, noise=0.05, lengths=None):
    """Scores whose nats per token in bucket b are about `means[b]`; documents differ in level."""
    generator = np.random.default_rng(1)
    widths = np.diff(BORDERS)
    lengths = lengths or [BORDERS[-1]] * num_documents
    tokens = np.array([[max(0, min(stop, n) - start) for start, stop in itertools.pairwise(BORDERS)] for n in lengths])
    level = generator.normal(0, 0.5, (len(lengths), 1))
    rates = np.array(means) + level + generator.normal(0, noise, (len(lengths), len(widths)))
    return PositionScores(BORDERS, rates * tokens, tokens)


def test_default_borders_are_powers_of_two_up_to_the_length():
    assert bucket_borders(1000) == (0, 64, 128, 256, 512, 1000)
    assert bucket_borders(50) == (0, 50)
    assert bucket_borders(100, [10, 50, 200]) == (0, 10, 50, 100)


def test_buckets_sum_to_the_whole_loss_and_equal_that_of_transformers(tmp_path):
    from cpt_dist.config import ModelConfig
    from cpt_dist.model.load import load_model

    save_model(tmp_path)
    encoded, model = documents(200, 130, 7), tiny_model()
    scores = score_positions(
        encoded, packed_scorer(load_model(ModelConfig(path=str(tmp_path))).eval()), (0, 64, 128, 256)
    )
    whole = score_tokens(encoded, plain_scorer(model), window=256, batch_tokens=1)
    assert scores.nll.sum(axis=1) == pytest.approx(whole, rel=1e-6)
    assert scores.tokens.tolist() == [[64, 64, 72], [64, 64, 2], [7, 0, 0]]
    tokens = torch.from_numpy(encoded[0])[None]
    with torch.no_grad():
        loss = float(model(tokens, labels=tokens).loss)
    assert scores.nll[0].sum() / 200 == pytest.approx(loss, rel=1e-6)


def test_a_token_is_counted_where_as_many_stand_before_it():
    def score(input_ids, labels, position_ids, cu_seqlens):
        return position_ids.double()

    scores = score_positions(documents(300), score, (0, 10, 100, 256))
    assert scores.nll.tolist() == [[sum(range(10)), sum(range(10, 100)), sum(range(100, 256))]]


def test_a_loss_that_falls_and_then_stays_is_effective_to_there():
    found = curve(planted([3.0, 2.5, 2.5, 2.5]), *RESAMPLING)
    assert (found.falls_until, found.rises_from) == (128, None)
    assert [bucket.step_outcome for bucket in found.buckets] == [None, "improved", "undecided", "undecided"]


def test_a_loss_that_rises_is_found_where_it_begins_to():
    found = curve(planted([3.0, 2.5, 2.2, 4.0]), *RESAMPLING)
    assert (found.falls_until, found.rises_from) == (256, 256)


def test_steps_are_taken_on_documents_that_fill_both_buckets():
    lengths = [512] * 10 + [200] * 10
    scores = planted([3.0, 2.5, 2.0, 1.5], lengths=lengths)
    found = curve(scores, *RESAMPLING)
    assert [bucket.documents for bucket in found.buckets] == [20, 20, 20, 10]
    assert [bucket.step_documents for bucket in found.buckets] == [0, 20, 10, 10]


def test_a_planted_change_is_found_in_its_bucket_only():
    base = planted([3.0, 2.5, 2.0, 2.0])
    shift = np.array([0.0, 0.0, 0.0, -0.3]) + np.random.default_rng(3).normal(0, 0.02, base.nll.shape)
    found = changes(base, PositionScores(BORDERS, base.nll + shift * base.tokens, base.tokens), *RESAMPLING)
    assert found[3].outcome == "improved"
    assert found[3].difference.value == pytest.approx(-0.3, abs=0.02)
    assert all(abs(change.difference.value) < 0.02 for change in found[:3])


def test_one_document_has_a_curve_without_intervals():
    found = curve(planted([3.0, 2.0, 2.0, 1.0], num_documents=1), *RESAMPLING)
    assert found.buckets[1].loss.low is None
    assert (found.falls_until, found.rises_from) == (None, None)
