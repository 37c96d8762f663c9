"""A language model of hashed byte n-grams in numpy: how many bits a byte of a text costs, after a sample of its source.

It is small, fits in seconds on a CPU and knows no unknown words, as it reads bytes: enough to say where in its source a
document lies. It is no judge of English; for that give a KenLM or Hugging Face model. Probabilities are interpolated
with a Dirichlet prior: p_k = (c(context, byte) + a p_(k-1)) / (c(context) + a) (MacKay & Peto 1995).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_FINISHER = np.uint64(0xD6E8FEB86659FD93)
BLOCK_BYTES = 1 << 18
WIDE_ORDERS = 2
"""Counts of n-grams up to this order are 32 bits, of longer ones 16 bits that stop at their end."""
PRIORS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
"""Strengths a of the prior that `fit` tries on text that it didn't count."""


def _table_bits(order: int, bits: int) -> int:
    return min(8 * order, bits)


def _buckets(data: np.ndarray, order: int, bits: int) -> list[np.ndarray]:
    """For k = 1 to order: [bytes] which counter the k bytes that end here have; zeros stand before the text."""
    values = data.astype(np.uint64) + np.uint64(1)
    places, run = [], values
    for k in range(1, order + 1):
        if k > 1:
            previous = np.empty_like(run)
            previous[:1] = 0
            previous[1:] = run[:-1]
            run = previous * _MULTIPLIER + values
        shift = np.uint64(64 - _table_bits(k, bits))
        places.append(((run ^ (run >> np.uint64(29))) * _FINISHER >> shift).astype(np.int64))
    return places


@dataclass(frozen=True)
class NgramModel:
    """Counts of n-grams of 1 to `order` bytes, hashed into tables."""

    counts: Sequence[np.ndarray]
    """[2 ** bits] for each order."""
    prior: float

    @property
    def order(self) -> int:
        """Bytes in the longest n-gram."""
        return len(self.counts)

    def bits_per_byte(self, data: bytes) -> float:
        """Mean of -log2 p over the bytes of a text; 8 for an empty one."""
        if not data:
            return 8.0
        total, before = 0.0, self.order - 1
        bits = int(np.log2(len(self.counts[-1])))
        for start in range(0, len(data), BLOCK_BYTES):
            first = max(start - before, 0)
            block = np.frombuffer(data[first : start + BLOCK_BYTES], dtype=np.uint8)
            total += self._bits(block, bits)[start - first :].sum()
        return float(total / len(data))

    def _bits(self, block: np.ndarray, bits: int) -> np.ndarray:
        probability = np.full(len(block), 1 / 256)
        context = np.full(len(block), float(self.counts[0].sum()))
        for table, places in zip(self.counts, _buckets(block, self.order, bits), strict=True):
            seen = table[places].astype(np.float64)
            probability = (np.minimum(seen, context) + self.prior * probability) / (context + self.prior)
            # What ends here is the context of the next byte, one order higher.
            context = np.empty_like(seen)
            context[:1] = 0
            context[1:] = seen[:-1]
        return -np.log2(probability)


def _count(texts: Iterable[bytes], order: int, bits: int) -> list[np.ndarray]:
    totals = [np.zeros(1 << _table_bits(k, bits), dtype=np.int64) for k in range(1, order + 1)]
    parts: list[bytes] = []

    def flush() -> None:
        block = np.frombuffer(b"\0".join(parts), dtype=np.uint8)
        for total, places in zip(totals, _buckets(block, order, bits), strict=True):
            total += np.bincount(places, minlength=len(total))
        parts.clear()

    size = 0
    for text in texts:
        parts.append(text)
        size += len(text)
        if size >= 1 << 22:
            flush()
            size = 0
    if parts:
        flush()
    types = [np.uint32 if k <= WIDE_ORDERS else np.uint16 for k in range(1, order + 1)]
    return [np.minimum(t, np.iinfo(kind).max).astype(kind) for t, kind in zip(totals, types, strict=True)]


def fit(texts: Sequence[bytes], held_back: Sequence[bytes], order: int, bits: int) -> NgramModel:
    """A model that counts `texts`, with the prior under which `held_back` (its first 1 MB) costs least."""
    counts = _count(texts, order, bits)
    sample = b"\0".join(held_back)[: 1 << 20]
    models = [NgramModel(counts, prior) for prior in PRIORS]
    return min(models, key=lambda model: model.bits_per_byte(sample)) if sample else models[1]


def as_tensors(model: NgramModel) -> dict[str, np.ndarray]:
    """The tables under names for a file."""
    return {f"counts_{k}": table for k, table in enumerate(model.counts, start=1)}


def from_tensors(tensors: Mapping[str, np.ndarray], prior: float) -> NgramModel:
    """The model whose tables `as_tensors` named."""
    number = sum(name.startswith("counts_") for name in tensors)
    return NgramModel([tensors[f"counts_{k}"] for k in range(1, number + 1)], prior)
