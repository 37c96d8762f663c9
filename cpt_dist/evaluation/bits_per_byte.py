"""Bits per byte of whole documents, in sliding windows, by anything that can give a loss per token.

Bits per byte is the only language-model loss that survives a change of tokenizer: sum of nll / (ln 2 * UTF-8 bytes)
(Gao et al. 2020, "The Pile", arXiv 2101.00027, section 3.1). Windows overlap as in transformers' guide "Perplexity
of fixed-length models", but the last window is moved back to full length. This module knows no model and no
process group: a callable scores, another one sums over ranks.

What is counted. A document is seen as `[context] text tokens`, where the context token is the tokenizer's BOS if it
adds one and its separator otherwise. Every text token is predicted once, the first one from the context token alone,
so the sum is the length of a complete code of the text, and the denominator is all of the text's bytes. The context
token and the separator at a document's end aren't predicted: they carry no byte of the text, and a tokenizer without
them would be at an advantage. In training without BOS a document follows its predecessor's separator but can't
attend to it, so there the first token is never learned; here it is still paid for, by base and adapted model alike.
lm-evaluation-harness makes the same choice (`prefix_token_id` of its rolling log-likelihoods).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cpt_dist.evaluation.documents import DocumentEncoder, EvaluationText

IGNORED = -100
RESOLUTION = 1e-6
"""Share of a document's nll by which rounding in fp32 may move it (another batch, tokenizer or engine); two models
that differ by less on a document don't differ there."""
Score = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""score(input_ids [T], labels [T], position_ids [T], cu_seqlens [pieces+1]) -> nll [T] in nats, anything where the
label is -100. Labels are already shifted; pieces must not see each other."""
SumOverRanks = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Window:
    """Inputs `start` to `stop` (exclusive) of one document; the labels of inputs `first` to `stop` are scored."""

    document: int
    start: int
    stop: int
    first: int


def plan_windows(document: int, num_inputs: int, window: int) -> list[Window]:
    """Windows of a document with `num_inputs` predictions: stride window // 2, each prediction scored exactly once.

    Every window but those of a shorter document is full, the last one too, so a scored token has at least
    window - window // 2 tokens of context, or all there are. Raises ValueError if `window` < 2.
    """
    if window < 2:
        raise ValueError(f"window {window} must be at least 2")
    stops = [min(window, num_inputs)] if num_inputs else []
    while stops and stops[-1] < num_inputs:
        stops.append(min(stops[-1] + window // 2, num_inputs))
    return [
        Window(document, max(0, stop - window), stop, previous)
        for previous, stop in zip([0, *stops], stops, strict=False)
    ]


def plan_forwards(num_inputs: Sequence[int], window: int, batch_tokens: int) -> list[list[Window]]:
    """Windows of documents with `num_inputs` predictions each, in order, grouped into forward passes.

    A forward holds at most `batch_tokens` inputs; a window that is longer than that has one to itself.
    """
    forwards: list[list[Window]] = []
    room = 0
    for document, count in enumerate(num_inputs):
        for piece in plan_windows(document, count, window):
            size = piece.stop - piece.start
            if size > room or not forwards:
                forwards.append([])
                room = batch_tokens
            forwards[-1].append(piece)
            room -= size
    return forwards


def score_tokens(
    encoded: Sequence[np.ndarray],
    score: Score,
    *,
    window: int,
    batch_tokens: int,
    rank: int = 0,
    world_size: int = 1,
    sum_over_ranks: SumOverRanks = lambda values: values,
) -> np.ndarray:
    """Sum of nll in nats of each document, float64 [documents], the same on every rank.

    `encoded` are the documents' tokens with the context token in front (int64 [1 + text tokens]); every rank passes
    all of them. Forward i is made by rank i % world_size; ranks without work in the last round make one with a single
    ignored label, because a sharded model needs the same number of forwards on each. `sum_over_ranks` adds float64
    [documents] arrays over ranks. The caller chooses eval mode and no_grad.
    """
    forwards = plan_forwards([len(tokens) - 1 for tokens in encoded], window, batch_tokens)
    sums = np.zeros(len(encoded), dtype=np.float64)
    for round_start in range(0, len(forwards), world_size):
        mine = round_start + rank
        pieces = forwards[mine] if mine < len(forwards) else []
        nll = score(*_tensors(encoded, pieces)).detach().to("cpu", torch.float64).numpy()
        position = 0
        for piece in pieces:
            scored = nll[position + piece.first - piece.start : position + piece.stop - piece.start]
            sums[piece.document] += scored.sum()
            position += piece.stop - piece.start
    return sum_over_ranks(sums)


def filler(token: int) -> tuple[torch.Tensor, ...]:
    """Arguments of a `Score` that scores nothing: what a rank without work sends through a sharded model."""
    tokens, ignored = torch.full((2,), token), torch.full((2,), IGNORED)
    return tokens, ignored, torch.arange(2), torch.tensor([0, 2], dtype=torch.int32)


def _tensors(encoded: Sequence[np.ndarray], pieces: Sequence[Window]) -> tuple[torch.Tensor, ...]:
    """input_ids, labels, position_ids and cu_seqlens of a forward; without pieces, those of a filler."""
    if not pieces:
        return filler(int(encoded[0][0]))
    inputs, labels, positions = [], [], []
    for piece in pieces:
        tokens = encoded[piece.document]
        inputs.append(tokens[piece.start : piece.stop])
        label = tokens[piece.start + 1 : piece.stop + 1].copy()
        label[: piece.first - piece.start] = IGNORED
        labels.append(label)
        positions.append(np.arange(piece.stop - piece.start))
    cu_seqlens = np.cumsum([0, *(len(part) for part in inputs)], dtype=np.int32)
    arrays = (np.concatenate(inputs), np.concatenate(labels), np.concatenate(positions), cu_seqlens)
    return tuple(torch.from_numpy(array) for array in arrays)


@dataclass(frozen=True)
class DocumentScores:
    """What a model's code of each document weighs: arrays [documents] in the order of the texts."""

    nll: np.ndarray
    """Nats, float64."""
    num_bytes: np.ndarray
    """UTF-8 bytes of the text, int64."""
    num_tokens: np.ndarray
    """Text tokens of this model's tokenizer, int64; all of them are scored."""

    @property
    def bits_per_byte(self) -> float:
        return float(self.nll.sum() / (math.log(2) * self.num_bytes.sum()))

    def summary(self) -> dict[str, float | int]:
        """The totals as metrics.jsonl keeps them: bits_per_byte, nll (nats), bytes, tokens, documents."""
        return {
            "bits_per_byte": self.bits_per_byte,
            "nll": float(self.nll.sum()),
            "bytes": int(self.num_bytes.sum()),
            "tokens": int(self.num_tokens.sum()),
            "documents": len(self.nll),
        }


def nll_change(before: DocumentScores, after: DocumentScores) -> np.ndarray:
    """after - before in nats of each document, float64 [documents]; 0 where that is within `RESOLUTION`."""
    change = after.nll - before.nll
    return np.where(np.abs(change) > RESOLUTION * np.abs(before.nll), change, 0.0)


def score_documents(
    texts: Sequence[EvaluationText],
    encoder: DocumentEncoder,
    score: Score,
    *,
    window: int,
    batch_tokens: int,
    rank: int = 0,
    world_size: int = 1,
    sum_over_ranks: SumOverRanks = lambda values: values,
) -> DocumentScores:
    """Score `texts` (at least one) under a model whose tokenizer is `encoder`; arguments as in `score_tokens`.

    Raises ValueError without texts: nothing measured has no bits per byte.
    """
    if not texts:
        raise ValueError("no documents to score")
    encoded = [encoder.encode(item.text) for item in texts]
    nll = score_tokens(
        encoded,
        score,
        window=window,
        batch_tokens=batch_tokens,
        rank=rank,
        world_size=world_size,
        sum_over_ranks=sum_over_ranks,
    )
    num_bytes = np.array([item.num_bytes for item in texts], dtype=np.int64)
    return DocumentScores(nll, num_bytes, np.array([len(tokens) - 1 for tokens in encoded], dtype=np.int64))
