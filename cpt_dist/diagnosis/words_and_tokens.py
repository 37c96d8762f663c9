"""What tokenizer and words of a sample say: fertility, volume in tokens, overlap of frequent words.

Overlap is of words, not of token ids, which a byte-level vocabulary shares by construction. It falls with the size of
a sample and with any change of subject, so it is compared with the overlap of two halves of the general text, counted
over as many words. Nothing here knows a model.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from cpt_dist.diagnosis.corpus_sample import CorpusSample, SampledDocument
from cpt_dist.evaluation import statistics
from cpt_dist.evaluation.documents import DocumentEncoder
from cpt_dist.evaluation.statistics import Estimate

TOP_WORDS = 10_000
"""Words that are compared (Gururangan et al. 2020, arXiv 2004.10964, section 3.1)."""
LONGEST_MEAN_WORD = 12.0
"""Characters; texts whose words are longer on average are written without spaces, and then words say nothing."""
LEAST_WORDS = 2_000
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class TokenCounts:
    """A sample under a tokenizer."""

    num_words: int
    mean_word: float
    """Characters."""
    per_byte: Estimate
    """Tokens per byte."""
    per_word: float | None
    """Tokens per word; None where words say nothing."""
    volume: Estimate
    """Tokens of all different documents; without an interval where all of them were counted."""


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def count_tokens(
    sample: CorpusSample, encoder: DocumentEncoder, *, num_resamples: int, confidence: float, seed: Sequence[int]
) -> TokenCounts:
    """Tokens of every document of the sample; intervals from resampled documents."""
    tokens = np.array([len(encoder.text_tokens(one.text)) for one in sample.documents], dtype=np.int64)
    sizes = np.array([one.num_bytes for one in sample.documents], dtype=np.float64)
    low = high = None
    if len(sizes) > 1:
        replicates = statistics.resampled_ratios(tokens[None].astype(np.float64), sizes, num_resamples, list(seed))[0]
        effective = statistics.effective_documents(sizes)
        low, high = statistics.percentile_interval(replicates, confidence, effective)
    per_byte = Estimate(float(tokens.sum() / sizes.sum()), low, high)
    words = [word for one in sample.documents for word in _words(one.text)]
    mean_word = sum(map(len, words)) / len(words) if words else 0.0
    per_word = float(tokens.sum()) / len(words) if words and mean_word <= LONGEST_MEAN_WORD else None
    total = sample.different_bytes
    if sample.is_whole:
        volume = Estimate(float(tokens.sum()), None, None)
    else:
        bounds = [None if bound is None else bound * total for bound in (low, high)]
        volume = Estimate(per_byte.value * total, *bounds)
    return TokenCounts(len(words), mean_word, per_byte, per_word, volume)


def _vocabulary(documents: Iterable[SampledDocument], num_words: int) -> set[str]:
    """The most frequent of the first `num_words` words; equally frequent ones by their spelling."""
    counts: Counter[str] = Counter()
    left = num_words
    for one in documents:
        found = _words(one.text)[:left]
        counts.update(found)
        left -= len(found)
        if not left:
            break
    return {word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:TOP_WORDS]}


def _overlap(first: set[str], second: set[str]) -> float:
    return len(first & second) / min(len(first), len(second))


@dataclass(frozen=True)
class Overlap:
    """Overlap of frequent words, each a part of the smaller vocabulary."""

    domain_general: float
    general_general: float
    """Of two halves of the general text."""
    num_words: int
    """Words read on each side."""

    @property
    def relative(self) -> float:
        """1: the domain's words are as much those of general text as its own other half's are."""
        return self.domain_general / self.general_general


def word_overlap(domain: CorpusSample, general: CorpusSample, counts: tuple[TokenCounts, TokenCounts]) -> Overlap | str:
    """The overlap, or why there is none. `counts` are those of domain and general."""
    if any(one.mean_word > LONGEST_MEAN_WORD for one in counts):
        return f"words of more than {LONGEST_MEAN_WORD:g} characters on average: a text written without spaces"
    # Ids are hashes, so every second document is as good as a random half.
    halves = general.documents[::2], general.documents[1::2]
    sizes = [sum(len(_words(one.text)) for one in half) for half in halves]
    num_words = min(counts[0].num_words, *sizes)
    if num_words < LEAST_WORDS:
        return f"only {num_words:,} words to compare, at least {LEAST_WORDS:,} are needed on each side"
    first, second = (_vocabulary(half, num_words) for half in halves)
    own = _vocabulary(domain.documents, num_words)
    return Overlap((_overlap(own, first) + _overlap(own, second)) / 2, _overlap(first, second), num_words)
