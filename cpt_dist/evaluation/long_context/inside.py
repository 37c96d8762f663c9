"""Long-context measurements of a model in training, where it lies, on all ranks together.

Documents and prompts are those of the evaluation of exported models; here a score of tokens is all that is asked of
the model, so ranks that share a row share the long prompts too, and nothing is exported. Answers are chosen among
candidates: to write one takes a forward for each of its tokens without a cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xxhash

from cpt_dist.config import CptConfig
from cpt_dist.errors import UserError
from cpt_dist.evaluation.bits_per_byte import IGNORED, Score, SumOverRanks, filler
from cpt_dist.evaluation.documents import DocumentEncoder
from cpt_dist.evaluation.long_context.answering import Answer, chosen_score, continuation_tokens
from cpt_dist.evaluation.long_context.items import Item, TooShortError, make_item
from cpt_dist.evaluation.long_context.positions import score_positions
from cpt_dist.evaluation.long_context.texts import encode_beginnings, make_haystack, read_texts


@dataclass(frozen=True)
class Ranks:
    """How work is shared out; as in `score_tokens`."""

    rank: int = 0
    size: int = 1
    sum_over_ranks: SumOverRanks = lambda values: values


Buckets = Sequence[tuple[int, int]]
"""(start, stop) of buckets of positions, which may overlap."""


@dataclass(frozen=True)
class PositionMaterial:
    """Documents for buckets of positions."""

    ids: tuple[str, ...]
    encoded: list[np.ndarray]
    """int64 [1 + text tokens] of each document, as far as its buckets go."""
    documents: dict[tuple[int, int], list[int]]
    """Bucket -> places of its documents in `ids`."""


def read_documents(config: CptConfig, encoder: DocumentEncoder, buckets: Buckets) -> PositionMaterial:
    """For each bucket the first `max_documents` that fill it, or have `min_document_tokens` tokens and reach it.

    A bucket's documents don't depend on the others. Raises UserError with the buckets that no document reaches.
    """
    wanted = config.evaluation.long_context
    texts = read_texts(config)
    sizes: dict[int, int] = {}
    chosen: dict[tuple[int, int], list[int]] = {}
    problems = []
    for start, stop in buckets:
        least = stop if wanted.min_document_tokens is None else max(wanted.min_document_tokens, start + 1)
        places: list[int] = []
        for place, text in enumerate(texts):
            if len(places) == wanted.max_documents:
                break
            if text.num_bytes < least:  # a token has a byte at least
                continue
            if place not in sizes:
                sizes[place] = len(encoder.text_tokens(text.text))
            if sizes[place] >= least:
                places.append(place)
        chosen[start, stop] = places
        if not places:
            problems.append(
                f"positions {start}-{stop}: no document has {least:,} tokens (the longest that could, has "
                f"{max(sizes.values(), default=0):,}); give longer ones in evaluation.long_context.documents, name "
                "earlier positions, or lower evaluation.long_context.min_document_tokens"
            )
    if problems:
        raise UserError(problems)
    used = sorted({place for places in chosen.values() for place in places})
    ends = {place: max(stop for (_, stop), places in chosen.items() if place in places) for place in used}
    return PositionMaterial(
        tuple(texts[place].id for place in used),
        [encode_beginnings([texts[place]], encoder, ends[place])[0] for place in used],
        {bucket: [used.index(place) for place in places] for bucket, places in chosen.items()},
    )


def bucket_scores(
    material: PositionMaterial, score: Score, ranks: Ranks
) -> dict[tuple[int, int], tuple[tuple[str, ...], np.ndarray, np.ndarray]]:
    """Bucket -> (ids, nll in nats, tokens) of its documents [documents]."""
    borders = sorted({0, *(border for pair in material.documents for border in pair)})
    found = score_positions(material.encoded, score, borders, ranks.rank, ranks.size, ranks.sum_over_ranks)
    result = {}
    for (start, stop), places in material.documents.items():
        inside = slice(borders.index(start), borders.index(stop))
        ids = tuple(material.ids[place] for place in places)
        result[start, stop] = ids, found.nll[places, inside].sum(axis=1), found.tokens[places, inside].sum(axis=1)
    return result


def make_prompts(
    config: CptConfig, encoder: DocumentEncoder, tasks: Sequence[tuple[str, int]]
) -> dict[tuple[str, int], list[Item]]:
    """The items of each (task, length), whatever the others are. Raises UserError where a question doesn't fit."""
    wanted = config.evaluation.long_context
    texts = [] if wanted.haystack == "noise" else read_texts(config)
    haystacks = {length: make_haystack(texts, wanted.haystack, length) for length in sorted({one for _, one in tasks})}
    items, problems = {}, []
    for task, length in tasks:
        try:
            items[task, length] = [
                make_item(task, length, index, encoder, haystacks[length], config.seed, wanted.depths)
                for index in range(wanted.items)
            ]
        except TooShortError as error:
            problems.append(f"{task}/{length}: {error}; take a longer length")
    if problems:
        raise UserError(problems)
    return items


def item_id(item: Item) -> str:
    """A name that changes with the prompt."""
    return f"{item.id}/{xxhash.xxh3_64_hexdigest(item.prompt.encode())}"


def choices(
    items: Mapping[tuple[str, int], Sequence[Item]], encoder: DocumentEncoder, score: Score, ranks: Ranks
) -> dict[tuple[str, int], np.ndarray]:
    """(task, length) -> score of each item, float64 [items]: 1 where the right candidate is the likeliest."""
    flat = [item for group in items.values() for item in group]
    work = [(item, candidate) for item in flat for candidate in item.candidates]
    likelihoods = np.zeros(len(work), dtype=np.float64)
    for first in range(0, len(work), ranks.size):
        mine = first + ranks.rank
        if mine >= len(work):
            score(*filler(encoder.context_id))
            continue
        inputs = _candidate(*work[mine], encoder)
        nll = score(*inputs).detach().to("cpu", torch.float64)
        likelihoods[mine] = -float(nll[inputs[1] != IGNORED].sum())
    likelihoods = ranks.sum_over_ranks(likelihoods)
    found: dict[tuple[str, int], np.ndarray] = {}
    done = 0
    for key, group in items.items():
        values = []
        for item in group:
            number = len(item.candidates)
            values.append(chosen_score(Answer(None, tuple(likelihoods[done : done + number].tolist()))))
            done += number
        found[key] = np.array(values)
    return found


def _candidate(item: Item, candidate: str, encoder: DocumentEncoder) -> tuple[torch.Tensor, ...]:
    """Arguments of a `Score` for one candidate after its prompt, whose own tokens are not scored."""
    replaced, continuation = continuation_tokens(encoder, item.prompt, item.lead + candidate)
    prompt = encoder.encode(item.prompt)
    kept = len(prompt) - replaced
    tokens = torch.tensor([*prompt[:kept].tolist(), *continuation])
    labels = tokens[1:].clone()
    labels[: kept - 1] = IGNORED
    size = len(labels)
    return tokens[:-1], labels, torch.arange(size), torch.tensor([0, size], dtype=torch.int32)
