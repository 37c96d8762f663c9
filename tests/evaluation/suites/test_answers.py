"""Answers of a tiny model: independent of batches and ranks, equal to transformers' own."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from cpt_dist.config import ModelConfig
from cpt_dist.errors import UserError
from cpt_dist.evaluation.scorers import packed_decode, packed_logits
from cpt_dist.evaluation.suites.answers import Answerer, Sampling
from cpt_dist.evaluation.suites.generations import continue_prompts, read_prompts
from cpt_dist.evaluation.suites.text_model import TextModel
from cpt_dist.model.load import load_model
from cpt_dist.suites_config import SuitesConfig
from tests.evaluation.suites.small import model_folder, write_rows
from tests.helpers.models import FAMILIES

PROMPTS = [[5, 6, 7], [8], list(range(20, 60)), [9, 9, 9, 9], [30, 31]]
PAIRS = [(prompt, answer) for prompt in PROMPTS for answer in ([3], [4, 5, 6], [7, 8])]


def never(index, tokens):
    return False


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return model_folder(tmp_path_factory.mktemp("answers"))


@pytest.fixture(scope="module")
def logits(folder):
    return packed_logits(load_model(ModelConfig(path=str(folder))).eval())


@pytest.fixture(scope="module")
def plain(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


class Ranks:
    """Threads that stand for ranks: sums wait for each other, and forwards are counted."""

    def __init__(self, logits, world_size):
        self.barrier = threading.Barrier(world_size)
        self.parts = [None] * world_size
        self.counts = [0] * world_size
        self.logits, self.size, self.lock = logits, world_size, threading.Lock()

    def run(self, ask):
        results = [None] * self.size

        def body(rank):
            results[rank] = ask(self.answerer(rank))

        threads = [threading.Thread(target=body, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results

    def answerer(self, rank):
        def counted(*tensors):
            self.counts[rank] += 1
            with self.lock:
                return self.logits(*tensors)

        def sum_over_ranks(values):
            self.parts[rank] = values
            self.barrier.wait(60)
            total = sum(self.parts)
            self.barrier.wait(60)
            return total

        return Answerer(counted, 256, 24, rank, self.size, sum_over_ranks)


def test_log_likelihoods_are_those_of_transformers(logits, plain):
    values, greedy = Answerer(logits, 256, batch_tokens=64).log_likelihoods(PAIRS)
    for (context, answer), value, flag in zip(PAIRS, values, greedy, strict=True):
        with torch.no_grad():
            scores = plain(torch.tensor([context + answer])).logits[0, len(context) - 1 : -1].log_softmax(-1)
        assert value == pytest.approx(float(scores[range(len(answer)), answer].sum()), abs=1e-4)
        assert flag == (scores.argmax(-1).tolist() == answer)


def test_greedy_tokens_are_those_of_transformers_and_are_called_greedy(logits, plain):
    answerer = Answerer(logits, 256, batch_tokens=50)
    found = answerer.generate(PROMPTS, 6, never)
    for prompt, tokens in zip(PROMPTS, found, strict=True):
        settings = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6, "eos_token_id": None}
        expected = plain.generate(torch.tensor([prompt]), pad_token_id=0, **settings)[0, len(prompt) :]
        assert tokens == expected.tolist()
    assert answerer.log_likelihoods(list(zip(PROMPTS, found, strict=True)))[1].all()


@pytest.mark.parametrize(("family", "batch_tokens"), [("llama", 60), ("mistral", 4096), ("gpt2", 10)])
def test_kept_keys_give_the_tokens_that_recomputing_gives(tmp_path, family, batch_tokens):
    model = load_model(ModelConfig(path=str(FAMILIES[family](tmp_path)))).eval()
    read = []

    def decode(texts, most):
        read.append(len(texts))
        return packed_decode(model)(texts, most)

    recomputed = Answerer(packed_logits(model), 128, batch_tokens)
    kept = replace(recomputed, decode=decode)
    stop = lambda index, tokens: len(tokens) >= 3 + 4 * index  # noqa: E731
    for sampling in (None, [Sampling(seed) for seed in range(5)]):
        found = kept.generate(PROMPTS, 18, stop, sampling)
        assert found == recomputed.generate(PROMPTS, 18, stop, sampling)
        assert [len(tokens) for tokens in found] == [3, 7, 11, 15, 18]
    assert sum(read) == 10
    assert max(read) == {10: 1, 60: 2, 4096: 5}[batch_tokens]


def test_each_token_is_read_once_where_keys_are_kept(folder, monkeypatch):
    model = load_model(ModelConfig(path=str(folder))).eval()
    read, forward = [], model.forward
    monkeypatch.setattr(
        model, "forward", lambda tokens, *others, **named: read.append(len(tokens)) or forward(tokens, *others, **named)
    )
    Answerer(packed_logits(model), 256, decode=packed_decode(model)).generate(PROMPTS, 6, never)
    assert read == [sum(map(len, PROMPTS)), 5, 5, 5, 5, 5]


def test_ranks_do_not_use_what_one_rank_keeps(logits):
    def refuse(texts, most):
        raise AssertionError("several ranks must make the same forwards")

    found = Ranks(logits, 2).run(lambda answerer: replace(answerer, decode=refuse).generate(PROMPTS, 3, never))
    assert found == [Answerer(logits, 256).generate(PROMPTS, 3, never)] * 2


def test_ranks_share_the_work_with_equal_numbers_of_forwards(logits):
    alone = Answerer(logits, 256, batch_tokens=24)
    ranks = Ranks(logits, 3)
    for values, greedy in ranks.run(lambda answerer: answerer.log_likelihoods(PAIRS)):
        expected = alone.log_likelihoods(PAIRS)
        assert values == pytest.approx(expected[0], abs=1e-5)
        assert greedy.tolist() == expected[1].tolist()
    assert len(set(ranks.counts)) == 1
    stop = lambda index, tokens: len(tokens) >= 2 + index  # noqa: E731
    expected = alone.generate(PROMPTS, 6, stop)
    assert [len(tokens) for tokens in expected] == [2, 3, 4, 5, 6]
    assert ranks.run(lambda answerer: answerer.generate(PROMPTS, 6, stop)) == [expected] * 3
    assert len(set(ranks.counts)) == 1


def test_answers_with_one_context_share_its_forward(logits):
    counts = []

    def counted(*tensors):
        counts.append(len(tensors[0]))
        return logits(*tensors)

    Answerer(counted, 256).log_likelihoods([([5, 6, 7, 8], [choice]) for choice in range(4)])
    assert counts == [4]


def test_what_is_too_long_loses_its_beginning(logits):
    long = list(np.arange(300) % 200 + 10)
    answerer = Answerer(logits, 256)
    whole, cut = answerer.log_likelihoods([(long, [3, 4]), (long[-255:], [3, 4])])[0]
    assert whole == cut
    assert answerer.generate([long], 6, never) == answerer.generate([long[-250:]], 6, never)
    with pytest.raises(UserError, match="an answer of 257 tokens exceeds"):
        answerer.log_likelihoods([([1], [2] * 257)])
    with pytest.raises(UserError, match="256 new tokens leave no room"):
        answerer.generate([[1]], 256, never)


def test_a_seed_draws_the_same_whatever_is_asked_beside(logits):
    answerer = Answerer(logits, 256)
    many = answerer.generate(PROMPTS, 8, never, [Sampling(seed) for seed in range(5)])
    assert answerer.generate(PROMPTS[3:4], 8, never, [Sampling(3)]) == many[3:4]
    assert answerer.generate(PROMPTS[3:4], 8, never, [Sampling(4)]) != many[3:4]
    greedy = answerer.generate(PROMPTS, 8, never)
    assert answerer.generate(PROMPTS, 8, never, [Sampling(seed, top_p=1e-9) for seed in range(5)]) == greedy


def test_continuations_leave_out_the_prompt_and_repeat(folder, logits, tmp_path):
    model = TextModel(str(folder), Answerer(logits, 256))
    prompts = read_prompts(write_rows(tmp_path / "p.jsonl", [{"prompt": "The cell é"}, {"prompt": "A vein"}]))
    config = SuitesConfig(max_new_tokens=5, num_samples=2)
    first = continue_prompts(prompts, model, config, seed=0)
    assert first == continue_prompts(prompts, model, config, seed=0)
    assert [one.samples for one in first] != [one.samples for one in continue_prompts(prompts, model, config, seed=1)]
    assert len(first[0].samples) == 2
    tokens = model.answerer.generate([model.encode(prompts[0])], 5, never)[0]
    assert first[0].greedy == model.text(tokens)


def test_a_prompt_file_with_a_wrong_line_is_refused(tmp_path):
    path = write_rows(tmp_path / "p.jsonl", [{"prompt": "x"}, {"text": "y"}])
    with pytest.raises(UserError, match="line 2: it needs the one field prompt"):
        read_prompts(path)
