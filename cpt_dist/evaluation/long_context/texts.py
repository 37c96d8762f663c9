"""The documents of a long-context evaluation: the user's files, or what the sources hold out.

They come in the order of a hash of their text, so that the first ones are as good as drawn. Files are read like raw
text of a source and normalised in the same way; nothing is tokenised here.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence

import numpy as np

from cpt_dist.config import CptConfig
from cpt_dist.corpus.inputs import find_inputs
from cpt_dist.corpus.normalise import document_id, normalise
from cpt_dist.corpus.read import read_records
from cpt_dist.data.remote import as_folder, shards_folder
from cpt_dist.data.shards import is_complete, read_held_out
from cpt_dist.errors import UserError
from cpt_dist.evaluation.documents import DocumentEncoder, EvaluationText, HeldOut
from cpt_dist.evaluation.long_context.haystack import Haystack

HAYSTACK_BYTES_PER_TOKEN = 32
LEAST_HAYSTACK_BYTES = 1 << 20


def read_texts(config: CptConfig) -> list[EvaluationText]:
    """The documents of `evaluation.long_context.documents`, else those that `data.sources` hold out, each once.

    Raises UserError where a file is missing or damaged, and where there is no document.
    """
    wanted = config.evaluation.long_context
    if wanted.documents:
        files, _ = find_inputs(wanted.documents, "evaluation.long_context.documents")
        texts = {}
        for item in files:
            for record in read_records(item, wanted.text_field):
                text = normalise(record.text) if record.text else ""
                if text:
                    texts[document_id(text).hex()] = text
        found = [EvaluationText(name, texts[name]) for name in sorted(texts)]
    else:
        folders = [as_folder(shards_folder(config.data)) / name for name in config.data.sources]
        held_out: Iterable[HeldOut] = heapq.merge(
            *(read_held_out(folder) for folder in folders if is_complete(folder)), key=lambda document: document.id
        )
        found = [EvaluationText(document.id, document.text) for document in held_out]
    if not found:
        raise UserError(
            "evaluation.long_context.documents: no document was found in the files or held out of data.sources; give "
            "long documents: documents=[FILE, …]"
        )
    return found


def choose_long(
    texts: Sequence[EvaluationText], encoder: DocumentEncoder, min_tokens: int, max_documents: int
) -> tuple[list[int], int]:
    """Places in `texts` of the first `max_documents` with at least `min_tokens` text tokens, and the most tokens seen.

    A text with fewer bytes than that isn't tokenised, since a token has a byte at least.
    """
    chosen: list[int] = []
    longest = 0
    for place, item in enumerate(texts):
        if item.num_bytes < min_tokens:
            continue
        size = len(encoder.text_tokens(item.text))
        longest = max(longest, size)
        if size >= min_tokens:
            chosen.append(place)
        if len(chosen) == max_documents:
            break
    return chosen, longest


def encode_beginnings(texts: Sequence[EvaluationText], encoder: DocumentEncoder, length: int) -> list[np.ndarray]:
    """Context token and at most `length` text tokens of each text, int64 [1 + text tokens]."""
    return [encoder.encode(item.text)[: length + 1] for item in texts]


def make_haystack(texts: Sequence[EvaluationText], kind: str, longest_prompt: int) -> Haystack:
    """Noise, or the sentences of as many documents as a varied prompt of `longest_prompt` tokens asks for."""
    if kind == "noise":
        return Haystack.noise()
    enough = max(LEAST_HAYSTACK_BYTES, HAYSTACK_BYTES_PER_TOKEN * longest_prompt)
    taken, used = [], 0
    for item in texts:
        taken.append(item.text)
        used += item.num_bytes
        if used >= enough:
            break
    return Haystack.of_documents(taken)
