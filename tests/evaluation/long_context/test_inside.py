"""Long-context measurements inside a job are those of the evaluation of exported models, however they are dealt out."""

import json

import numpy as np
import pytest

from cpt_dist.config import CptConfig
from cpt_dist.errors import UserError
from cpt_dist.evaluation.documents import DocumentEncoder
from cpt_dist.evaluation.long_context import inside, texts
from cpt_dist.evaluation.long_context.answering import CachedAnswerer, chosen_score
from cpt_dist.evaluation.long_context.inside import Ranks
from cpt_dist.evaluation.scorers import plain_scorer
from tests.evaluation.tiny import save_model, text_of, tiny_model

BUCKETS = [(0, 64), (32, 96), (96, 160)]


@pytest.fixture
def config(tmp_path):
    config = CptConfig(run_dir=str(tmp_path))
    config.data.tokenizer = str(save_model(tmp_path / "model"))
    generator = np.random.default_rng(0)
    documents = [{"text": text_of(generator, words)} for words in (30, 100, 90, 120, 400)]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(one) + "\n" for one in documents))
    config.evaluation.long_context.documents = [str(tmp_path / "long.jsonl")]
    config.evaluation.long_context.items = 5
    return config


def dealt_out(measure, size):
    """What `measure(ranks)` gives where `size` ranks, one after the other, do their parts."""
    parts = []
    for rank in range(size):
        measure(Ranks(rank, size, lambda values: parts.append(values.copy()) or values))
    return measure(Ranks(sum_over_ranks=lambda values: sum(parts)))


def test_choices_are_those_of_the_answers_with_a_cache_on_any_number_of_ranks(config):
    encoder, model = DocumentEncoder(config.data.tokenizer), tiny_model()
    items = inside.make_prompts(config, encoder, [("niah_single_2", 400), ("kv", 700)])
    answer = CachedAnswerer(model, encoder, generate=False)
    expected = {key: [chosen_score(answer(item)) for item in group] for key, group in items.items()}

    def measure(ranks):
        return {
            key: found.tolist() for key, found in inside.choices(items, encoder, plain_scorer(model), ranks).items()
        }

    assert measure(Ranks()) == expected
    assert 0 < sum(map(sum, expected.values())) < 10
    assert dealt_out(measure, 3) == expected


def test_buckets_may_overlap_and_are_sums_over_their_positions_on_any_number_of_ranks(config):
    encoder, score = DocumentEncoder(config.data.tokenizer), plain_scorer(tiny_model())
    material = inside.read_documents(config, encoder, BUCKETS)
    assert sorted(len(one) for one in material.encoded) == [65, *[161] * 4]  # the shortest fills one bucket only

    def measure(ranks):
        return inside.bucket_scores(material, score, ranks)

    alone = measure(Ranks())
    config.evaluation.long_context.min_document_tokens = 96  # the same documents for each part of a bucket
    apart = inside.bucket_scores(inside.read_documents(config, encoder, [(32, 64), (64, 96)]), score, Ranks())
    assert alone[32, 96][0] == apart[32, 64][0] == apart[64, 96][0]
    assert alone[32, 96][1] == pytest.approx(apart[32, 64][1] + apart[64, 96][1], rel=1e-5)
    assert set(alone[32, 96][2].tolist()) == {64}
    for name, (ids, nll, tokens) in dealt_out(measure, 3).items():
        assert ids == alone[name][0]
        assert (nll.tolist(), tokens.tolist()) == (alone[name][1].tolist(), alone[name][2].tolist())


def test_items_of_a_gate_are_the_same_whatever_else_is_asked_for(config, monkeypatch):
    monkeypatch.setattr(texts, "LEAST_HAYSTACK_BYTES", 0)
    monkeypatch.setattr(texts, "HAYSTACK_BYTES_PER_TOKEN", 1)
    config.evaluation.long_context.items = 1
    encoder = DocumentEncoder(config.data.tokenizer)
    together = inside.read_documents(config, encoder, BUCKETS)
    prompts = inside.make_prompts(config, encoder, [("niah_single_2", 400), ("niah_single_2", 6000)])
    for pair in BUCKETS:
        alone = inside.read_documents(config, encoder, [pair])
        assert [alone.ids[place] for place in alone.documents[pair]] == [
            together.ids[place] for place in together.documents[pair]
        ]
    assert (
        inside.make_prompts(config, encoder, [("niah_single_2", 400)])["niah_single_2", 400]
        == prompts["niah_single_2", 400]
    )


def test_what_no_document_reaches_and_no_prompt_fits_is_named_with_the_fix(config):
    encoder = DocumentEncoder(config.data.tokenizer)
    with pytest.raises(
        UserError, match=r"0-90000: no document has 90,000 tokens .the longest that could, has .*give longer"
    ):
        inside.read_documents(config, encoder, [(0, 64), (0, 90000)])
    config.evaluation.long_context.min_document_tokens = 100
    with pytest.raises(UserError, match="80000-90000: no document has 80,001 tokens"):
        inside.read_documents(config, encoder, [(0, 64), (80000, 90000)])
    with pytest.raises(UserError) as caught:
        inside.make_prompts(config, encoder, [("kv", 20), ("passkey", 20)])
    assert [one.partition(":")[0] for one in caught.value.problems] == ["kv/20", "passkey/20"]
