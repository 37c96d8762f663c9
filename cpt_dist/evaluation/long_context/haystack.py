"""What a needle is hidden in: sentences of the user's documents, or a few sentences repeated.

A haystack gives as many units as are asked for, always the same from the same starting point, and never ends: the
documents are read round. It knows no tokenizer and no task.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

NOISE = (
    "The grass is green.",
    "The sky is blue.",
    "The sun is yellow.",
    "Here we go.",
    "There and back again.",
)
"""Sentences like those of the passkey task (Mohtashami & Jaggi 2023, arXiv 2305.16300, appendix)."""
MAX_SENTENCE_CHARACTERS = 400
_END_OF_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n{2,}")
Units = Callable[[int], list[str]]
"""The first n units of a filler."""


def split_sentences(text: str) -> list[str]:
    """Sentences and paragraphs of `text` on one line each; those of more than 400 characters are cut at words."""
    found = []
    for sentence in _END_OF_SENTENCE.split(text):
        line = " ".join(sentence.split())
        while len(line) > MAX_SENTENCE_CHARACTERS:
            cut = line.rfind(" ", 1, MAX_SENTENCE_CHARACTERS)
            cut = MAX_SENTENCE_CHARACTERS if cut < 0 else cut
            found.append(line[:cut])
            line = line[cut:].strip()
        if line:
            found.append(line)
    return found


@dataclass(frozen=True)
class Haystack:
    """The sentences that fill a prompt; make one by `noise` or `of_documents`."""

    sentences: Sequence[str]
    is_noise: bool

    @classmethod
    def noise(cls) -> Haystack:
        """The repeated sentences of `NOISE`."""
        return cls(NOISE, True)

    @classmethod
    def of_documents(cls, texts: Sequence[str]) -> Haystack:
        """The sentences of `texts` in their order. Raises ValueError where they have none."""
        sentences = [sentence for text in texts for sentence in split_sentences(text)]
        if not sentences:
            raise ValueError("the documents hold no sentence to fill a prompt with")
        return cls(sentences, False)

    def units(self, generator: random.Random) -> Units:
        """Neighbouring sentences from a drawn one on (noise: from the first one on), round and round."""
        start = 0 if self.is_noise else generator.randrange(len(self.sentences))

        def first(count: int) -> list[str]:
            return [self.sentences[(start + index) % len(self.sentences)] for index in range(count)]

        return first
