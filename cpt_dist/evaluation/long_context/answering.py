"""How a model answers an item: by writing, and by choosing among candidates.

The prompt goes through the model once; its keys and values are kept and serve the greedy decoding and every
candidate. Any callable that gives an `Answer` can stand in the model's place, which is how the tests plant truths.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from cpt_dist.evaluation.documents import DocumentEncoder
from cpt_dist.evaluation.long_context.items import Item

TAIL_CHARACTERS = 200


@dataclass(frozen=True)
class Answer:
    """What came of one item."""

    text: str | None
    """What the model wrote; None where it wasn't asked to."""
    log_likelihoods: tuple[float, ...]
    """Of each candidate in nats, after the prompt; they are of one form, so sums are compared."""


Answerer = Callable[[Item], Answer]


def written_score(item: Item, text: str) -> float:
    """Share of the right answers that stand in `text`, without regard to case (RULER's string_match_all)."""
    return sum(answer.lower() in text.lower() for answer in item.answers) / len(item.answers)


def chosen_score(answer: Answer) -> float:
    """1 where the right candidate is the likeliest, its share among those that tie with it, else 0."""
    best = max(answer.log_likelihoods)
    ties = [value == best for value in answer.log_likelihoods]
    return ties[0] / sum(ties)


class CachedAnswerer:
    """A transformers causal language model in eval mode that answers items one at a time."""

    def __init__(
        self, model: Any, encoder: DocumentEncoder, device: torch.device | str = "cpu", generate: bool = True
    ) -> None:
        """`model` must be on `device`, with an attention that takes a cache (sdpa, eager)."""
        self._model = model
        self._encoder = encoder
        self._device = device
        self._generate = generate

    @torch.inference_mode()
    def __call__(self, item: Item) -> Answer:
        prompt = self._encoder.encode(item.prompt).tolist()
        # All but the last token, since every continuation begins with the logits of that one.
        cache = DynamicCache()
        if len(prompt) > 1:
            self._forward(prompt[:-1], cache, 1)
        likelihoods = tuple(self._log_likelihood(prompt, item, one, cache) for one in item.candidates)
        return Answer(self._write(prompt[-1], item, cache) if self._generate else None, likelihoods)

    def _forward(self, tokens: list[int], cache: DynamicCache, logits_to_keep: int) -> torch.Tensor:
        """Logits [logits_to_keep, vocab] in fp32 of the last tokens; the cache grows by all of them."""
        done = cache.get_seq_length()
        found = self._model(
            input_ids=torch.tensor([tokens], device=self._device),
            position_ids=torch.arange(done, done + len(tokens), device=self._device)[None],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=logits_to_keep,
        )
        return found.logits[0].float()

    def _log_likelihood(self, prompt: list[int], item: Item, candidate: str, cache: DynamicCache) -> float:
        """Log-likelihood of lead and candidate after the prompt; the cache is left as it was found.

        A tokenizer may join the prompt's last characters with the candidate's first ones. Both are therefore encoded
        together, and where that changes tokens of the prompt the cache is cut back to those that stay.
        """
        replaced, continuation = continuation_tokens(self._encoder, item.prompt, item.lead + candidate)
        first = len(prompt) - 1 - replaced
        if first < 0:
            raise ValueError("the prompt is shorter than the tokens that a candidate changes")
        _cut(cache, first)
        logits = self._forward([prompt[first], *continuation[:-1]], cache, len(continuation))
        targets = torch.tensor(continuation, device=logits.device)
        total = float(logits.log_softmax(-1).gather(1, targets[:, None]).double().sum())
        _cut(cache, first)
        if replaced:
            self._forward(prompt[first:-1], cache, 1)
        return total

    def _write(self, last: int, item: Item, cache: DynamicCache) -> str:
        """Greedy continuation until the end-of-text token, until all answers stand in it, or its room is full."""
        tokens: list[int] = []
        text = ""
        ends = {self._encoder.separator_id}
        token = last
        for _ in range(item.answer_tokens):
            token = int(self._forward([token], cache, 1)[-1].argmax())
            if token in ends:
                break
            tokens.append(token)
            text = self._encoder.decode(tokens)
            if written_score(item, text) == 1:
                break  # what follows can't change the score
        return text


def _cut(cache: DynamicCache, length: int) -> None:
    surplus = cache.get_seq_length() - length
    if surplus > 0:
        cache.crop(-surplus)


def continuation_tokens(encoder: DocumentEncoder, prompt: str, continuation: str) -> tuple[int, list[int]]:
    """How many of the prompt's last tokens give way, and the tokens that follow the others.

    Only the prompt's end is encoded again, from a space on, since no tokenizer looks further back than a word.
    """
    start = prompt.find(" ", max(0, len(prompt) - TAIL_CHARACTERS))
    tail = prompt[max(start, 0) :]
    alone, joined = encoder.text_tokens(tail), encoder.text_tokens(tail + continuation)
    common = next((i for i, (a, b) in enumerate(zip(alone, joined, strict=False)) if a != b), len(alone))
    return len(alone) - common, joined[common:]
