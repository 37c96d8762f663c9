from __future__ import annotations

import pickle
import random
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpt_dist.corpus.steps import model_scores, steps_before_near_dedup
from cpt_dist.corpus.steps.fit import SourceModels, SourceSample, fit_models, needs_models
from cpt_dist.corpus.steps.model_scores import (
    Perplexity,
    Relevance,
    _given_model,
    _read,
    describe,
    fit_perplexity,
    fit_relevance,
    in_band,
)
from cpt_dist.corpus.steps.ngram_model import BLOCK_BYTES, NgramModel, fit
from cpt_dist.corpus.steps.relevance_model import area_under_curve
from cpt_dist.corpus.steps.sample import Sample
from cpt_dist.corpus.steps.text_view import TextView
from cpt_dist.curation_config import PerplexityConfig, RelevanceConfig
from cpt_dist.curation_profiles import resolve_steps
from cpt_dist.errors import UserError
from tests.helpers.tiny_run import WORDS, write_tokenizer

LAW = [
    "the",
    "court",
    "held",
    "that",
    "plaintiff",
    "shall",
    "recover",
    "damages",
    "under",
    "contract",
    "and",
    "statute",
]
SEA = [
    "the",
    "harbour",
    "boats",
    "return",
    "each",
    "morning",
    "with",
    "fish",
    "while",
    "bells",
    "ring",
    "over",
    "water",
]
SMALL = PerplexityConfig(bits=14, order=4)


def page(words: list[str], seed: int, length: int = 60) -> str:
    rng = random.Random(seed)
    return " ".join(rng.choice(words) for _ in range(length)).capitalize() + "."


@pytest.fixture(scope="module")
def sea_model(tmp_path_factory):
    return fit_perplexity([page(SEA, n) for n in range(80)], SMALL, tmp_path_factory.mktemp("models"), "sea")


def component(path, text):
    return Perplexity(path, (0.02, 0.98))(TextView(text))


def test_new_text_of_the_source_is_in_the_band_and_foreign_text_is_not(sea_model):
    own = [component(sea_model, page(SEA, 1000 + n))[1] for n in range(20)]
    assert sorted(own)[3] == 1.0
    assert component(sea_model, page(LAW, 1))[1] == 0.0


def test_the_cheapest_text_is_not_the_best(sea_model):
    # E17: low perplexity counted as quality, which puts repeated boilerplate on top.
    (cost, percentile), score = component(sea_model, "the harbour boats " * 100)
    assert cost < component(sea_model, page(SEA, 2000))[0][0]
    assert (percentile, score) == (0.0, 0.0)
    assert component(sea_model, "a" * 500)[1] == 0.0


def test_a_source_of_unusual_text_is_not_wiped_out(tmp_path):
    # E17: what is new to a model of English was dropped; percentiles are those of the source itself.
    path = fit_perplexity([page(LAW, n) for n in range(80)], SMALL, tmp_path, "law")
    scores = [component(path, page(LAW, 500 + n))[1] for n in range(20)]
    assert sum(scores) / len(scores) > 0.8


def test_percentiles_outside_the_band_fall_to_zero():
    assert [in_band(p, 0.1, 0.9) for p in (0.0, 0.05, 0.1, 0.5, 0.9, 0.95, 1.0)] == pytest.approx(
        [0, 0.5, 1, 1, 1, 0.5, 0]
    )
    assert in_band(0.0, 0.0, 1.0) == in_band(1.0, 0.0, 1.0) == 1.0


def test_probabilities_of_the_next_byte_sum_to_one():
    model = fit([b"the harbour of the old town " * 20], [b"the old harbour"], 3, 16)
    context = b"the har"
    costs = [
        len(context + bytes([n])) * model.bits_per_byte(context + bytes([n]))
        - len(context) * model.bits_per_byte(context)
        for n in range(256)
    ]
    assert sum(2**-cost for cost in costs) == pytest.approx(1, abs=0.03)
    assert costs[ord("b")] < 1


def test_cost_of_a_text_does_not_depend_on_blocks():
    model = fit([b"abcdefgh" * 100], [b"abcd"], 4, 12)
    rng = np.random.default_rng(0)
    data = rng.integers(97, 105, BLOCK_BYTES + 1000, dtype=np.uint8).tobytes()
    whole = model._bits(np.frombuffer(data, dtype=np.uint8), 12).mean()
    assert model.bits_per_byte(data) == pytest.approx(whole, rel=1e-12)
    assert model.bits_per_byte(b"") == 8.0
    assert isinstance(model, NgramModel)


def test_a_fitted_model_is_one_file_named_by_its_content(tmp_path, sea_model):
    texts = [page(SEA, n) for n in range(80)]
    again = fit_perplexity(texts, SMALL, tmp_path, "sea")
    assert again.name == sea_model.name
    assert again.read_bytes() == sea_model.read_bytes()
    assert describe(again)["documents"] == 80
    damaged = bytearray(again.read_bytes())
    damaged[-1] ^= 1
    again.write_bytes(damaged)
    _read.cache_clear()
    with pytest.raises(UserError, match="checksum"):
        component(again, "text")


def test_a_step_pickles_as_the_path_of_its_model(sea_model):
    step = Perplexity(sea_model, (0.02, 0.98))
    data = pickle.dumps(step)
    assert len(data) < 2000
    assert pickle.loads(data)(TextView(page(SEA, 5))) == step(TextView(page(SEA, 5)))


@pytest.mark.parametrize("method", ["classifier", "importance"])
def test_relevance_tells_domain_from_replay_whatever_the_length(tmp_path, method):
    domain, replay = ([page(words, n) for n in range(60)] for words in (LAW, SEA))
    path = fit_relevance(domain, replay, RelevanceConfig(method=method, bits=14), tmp_path, "relevance")
    assert describe(path)["area_under_curve"] == 1.0
    score = Relevance(path)
    for length in (20, 400):
        assert score(TextView(page(LAW, 900, length)))[1] > 0.8
        assert score(TextView(page(SEA, 900, length)))[1] < 0.2


def test_a_relevance_model_needs_documents_of_both(tmp_path):
    assert fit_relevance([page(LAW, 1)] * 10, [page(SEA, 1)], RelevanceConfig(), tmp_path, "r") is None
    assert fit_perplexity(["one"], SMALL, tmp_path, "p") is None


def test_area_under_the_curve_counts_ties_half():
    assert area_under_curve(np.array([2.0, 1.0]), np.array([1.0, 0.0])) == pytest.approx(3.5 / 4)
    assert area_under_curve(np.array([]), np.array([1.0])) == 0.5


def test_models_become_components_of_quality(document, sea_model, prose):
    settings = resolve_steps("general", {"language": {"detector": "none"}}, "x")
    step = steps_before_near_dedup(settings, model_scores(settings, sea_model, None))[-1]
    with_model = step(document(page(SEA, 7)))
    assert {"bits_per_byte", "perplexity_percentile", "perplexity"} <= set(with_model.scores)
    without = steps_before_near_dedup(settings)[-1](document(page(SEA, 7)))
    assert "perplexity" not in without.scores


def test_a_given_kenlm_model_is_asked_by_line_and_answers_in_bits_per_byte(tmp_path, monkeypatch):
    asked = []

    def score(text, bos, eos):
        asked.append(text)
        return -2.0

    monkeypatch.setitem(sys.modules, "kenlm", SimpleNamespace(Model=lambda path: SimpleNamespace(score=score)))
    _given_model.cache_clear()
    (tmp_path / "big.arpa").write_text("a model")
    config = PerplexityConfig(model=str(tmp_path / "big.arpa"))
    path = fit_perplexity(["two words\nsecond line"] * 4, config, tmp_path, "given")
    assert asked[:2] == ["two words", "second line"]
    (cost, _), _ = component(path, "two words\nsecond line")
    assert cost == pytest.approx(4 * np.log2(10) / 21)


def test_a_missing_kenlm_or_a_wrong_path_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "kenlm", None)
    _given_model.cache_clear()
    (tmp_path / "big.arpa").write_text("a model")
    with pytest.raises(UserError, match=r"pip install .cpt_dist\[kenlm\]"):
        fit_perplexity(["a"] * 4, PerplexityConfig(model=str(tmp_path / "big.arpa")), tmp_path, "p")
    with pytest.raises(UserError, match=r"quality\.perplexity\.model"):
        fit_perplexity(["a"] * 4, PerplexityConfig(model=str(tmp_path / "absent")), tmp_path, "p")


def test_a_hugging_face_model_scores_every_token_once(tmp_path):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from cpt_dist.corpus.steps.language_models import HuggingFaceModel

    write_tokenizer(tmp_path)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=1001, **sizes)).save_pretrained(tmp_path)
    text = page(WORDS, 3, 200).lower().encode()
    wide, narrow = (HuggingFaceModel(str(tmp_path), window) for window in (1 << 14, 256))
    assert narrow.bits_per_byte(text) == pytest.approx(wide.bits_per_byte(text), rel=0.05)
    per_token = wide.bits_per_byte(text) * len(text) / 199
    assert per_token == pytest.approx(np.log2(1001), rel=0.05)


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(st.integers(0, 2**128 - 1), st.integers(1, 30), max_size=25),
    st.integers(1, 200),
    st.randoms(use_true_random=False),
)
def test_a_sample_is_the_same_for_any_order_and_number_of_tasks(lengths, size, rng):
    texts = {key.to_bytes(16, "big"): "a" * length for key, length in lengths.items()}
    one = Sample(size)
    for key, text in texts.items():
        one.add(key, text)
    tasks = [Sample(size) for _ in range(3)]
    items = list(texts.items())
    rng.shuffle(items)
    for place, (key, text) in enumerate(items):
        tasks[place % 3].add(key, text)
    merged = Sample(size).merge(tasks)
    assert merged.texts() == one.texts()
    expected, total = [], 0
    for _, text in sorted(texts.items()):
        if total >= size:
            break
        expected.append(text)
        total += len(text)
    assert one.texts() == expected


def test_models_of_all_sources_are_fitted_at_once(tmp_path):
    def sample(words, is_domain, **quality):
        small = {"perplexity": {"bits": 12, "order": 3}, "relevance": {"bits": 12}}
        settings = resolve_steps("general", {"quality": {**small, **quality}}, "x")
        return SourceSample(settings, [page(words, n) for n in range(12)], is_domain)

    samples = {
        "law": sample(LAW, True),
        "sea": sample(SEA, False),
        "other": sample(SEA, False, relevance={"enabled": False}),
        "unscored": sample(SEA, False, enabled=False),
    }
    models = fit_models(samples, tmp_path)
    assert models["law"].relevance == models["sea"].relevance is not None
    assert describe(models["law"].relevance)["replay_documents"] == 12
    assert models["other"].relevance is None
    assert len({models[name].perplexity for name in ("law", "sea", "other")}) == 3
    assert models["unscored"] == SourceModels(None, None)
    assert [needs_models(sample.settings) for sample in samples.values()] == [True, True, True, False]
    assert fit_models({"law": samples["law"]}, tmp_path)["law"].relevance is None
    assert not list(tmp_path.glob(".*"))
