"""Questions and answers in text, for a model that works on tokens.

Tokens are made as lm-evaluation-harness' Hugging Face backend makes them (a prompt and its answer are encoded
together, blanks at the prompt's end belong to the answer, an empty prompt is BOS or the end of text), so scores are
those of that library item by item. Which model answers, and on how many ranks, is the `Answerer`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from cpt_dist.errors import UserError
from cpt_dist.evaluation.suites.answers import Answerer, Sampling


class TextModel:
    """A tokenizer in front of an `Answerer`."""

    def __init__(self, tokenizer_folder: str, answerer: Answerer) -> None:
        self.tokenizer = load_tokenizer(tokenizer_folder)
        self.answerer = answerer
        self.end_id: int = self.tokenizer.eos_token_id
        bos = self.tokenizer.bos_token_id
        self.prefix_id: int = self.end_id if bos is None else bos
        self._prefix_text: str = self.tokenizer.decode([self.prefix_id])

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, with special tokens as the tokenizer adds them, but no second BOS."""
        if text.startswith(self._prefix_text):
            return self.tokenizer.encode(text, add_special_tokens=False)
        return self.tokenizer.encode(text)

    def encode_pair(self, prompt: str, answer: str) -> tuple[list[int], list[int]]:
        """(context tokens, answer tokens); `answer` begins with its own blank where it wants one."""
        if not prompt:
            tokens = self.tokenizer.encode(answer, add_special_tokens=False)
            return ([self.prefix_id], tokens) if tokens[0] != self.prefix_id else (tokens[:1], tokens[1:])
        blanks = len(prompt) - len(prompt.rstrip())
        if blanks:
            prompt, answer = prompt[:-blanks], prompt[-blanks:] + answer
        context = self.encode(prompt)
        return context, self.encode(prompt + answer)[len(context) :]

    def log_likelihoods(self, pairs: Sequence[tuple[str, str]]) -> tuple[np.ndarray, np.ndarray]:
        """(log-likelihood in nats float64 [pairs], greedy bool [pairs]) of answers after prompts."""
        return self.answerer.log_likelihoods([self.encode_pair(*pair) for pair in pairs])

    def generate(
        self,
        prompts: Sequence[str],
        max_new_tokens: int,
        stops: Sequence[Sequence[str]],
        sampling: Sequence[Sampling] | None = None,
    ) -> list[str]:
        """Continuations of at most `max_new_tokens` tokens, cut before the end of text and before the first of `stops`.

        `stops` are texts, one sequence for each prompt. The prompt is cut off by its tokens, never by its characters.
        """

        def enough(index: int, tokens: list[int]) -> bool:
            return tokens[-1] == self.end_id or any(stop in self.text(tokens) for stop in stops[index])

        found = self.answerer.generate([self.encode(prompt) for prompt in prompts], max_new_tokens, enough, sampling)
        return [_cut(self.text(tokens), stop) for tokens, stop in zip(found, stops, strict=True)]

    def text(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without special ones."""
        return self.tokenizer.decode(tokens, skip_special_tokens=True)


def load_tokenizer(folder: str) -> Any:
    """The tokenizer of a model folder. Raises UserError where it doesn't load or has no end-of-text token."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"'{folder}' has no tokenizer that loads ({str(error).splitlines()[0]})") from error
    if tokenizer.eos_token_id is None:
        raise UserError(f"'{folder}': its tokenizer names no eos_token; add it to tokenizer_config.json")
    return tokenizer


def _cut(text: str, stops: Sequence[str]) -> str:
    return text[: min((text.index(stop) for stop in stops if stop in text), default=len(text))]
