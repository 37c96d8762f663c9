"""Imported token data as documents: their tokens are taken over as they are, not one is added, changed or made anew.

There is no text to normalise or to hash, so a document's id is that of its tokens, and an imported document is no
duplicate of one that was prepared from text. Its text, for its number of bytes and for the held-out files, is what
the tokenizer decodes. Nothing can show that the tokens were made with that tokenizer; only ids beyond it are refused.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import xxhash

from cpt_dist.corpus.inputs import InputFile
from cpt_dist.corpus.token_files import TokenDocument, read_token_documents
from cpt_dist.data.documents import BATCH_DOCUMENTS, DUPLICATE, EMPTY, TOO_SHORT, Fate, Rules, is_held_out
from cpt_dist.data.shard_writer import Document
from cpt_dist.data.tokenizer import DocumentTokenizer
from cpt_dist.errors import UserError


def tokens_id(tokens: np.ndarray) -> bytes:
    """xxh3-128 (16 bytes, big endian) of the tokens as little-endian u32, whatever width they were stored in."""
    return xxhash.xxh3_128_digest(np.ascontiguousarray(tokens, dtype="<u4").tobytes())


def imported(
    inputs: list[InputFile],
    column: str,
    rules: Rules,
    tokenizer: DocumentTokenizer,
    seen: set[bytes],
    start: tuple[int, int] = (0, 0),
) -> Iterator[list[Fate]]:
    """The fate of every document from (input, document) `start` on, in runs of at most BATCH_DOCUMENTS.

    Ids of new documents are added to `seen`. Raises UserError for a token id that the tokenizer doesn't have, and what
    `read_token_documents` raises.
    """
    for index in range(start[0], len(inputs)):
        batch: list[TokenDocument] = []
        for document in read_token_documents(inputs[index], column, start[1] if index == start[0] else 0):
            batch.append(document)
            if len(batch) == BATCH_DOCUMENTS:
                yield _fates(index, batch, rules, tokenizer, seen)
                batch = []
        if batch:
            yield _fates(index, batch, rules, tokenizer, seen)


def _fates(
    index: int, batch: list[TokenDocument], rules: Rules, tokenizer: DocumentTokenizer, seen: set[bytes]
) -> list[Fate]:
    fates = []
    for found in batch:
        if found.tokens.size and not 0 <= int(found.tokens.min()) <= int(found.tokens.max()) < tokenizer.vocab_size:
            raise UserError(
                f"'{found.file}' document {found.index} has token ids {found.tokens.min()} to {found.tokens.max()}, "
                f"but data.tokenizer has {tokenizer.vocab_size} tokens; give the tokenizer that the data was made with"
            )
    for found, text in zip(batch, tokenizer.decode_batch([found.tokens for found in batch]), strict=True):
        document, reason = None, None
        doc_id, num_bytes = tokens_id(found.tokens), len(text.encode())
        if not found.tokens.size:
            reason = EMPTY
        elif num_bytes < rules.min_bytes:
            reason = TOO_SHORT
        elif doc_id in seen:
            reason = DUPLICATE
        else:
            seen.add(doc_id)
            document = Document(doc_id, text, num_bytes, found.file, found.index, found.byte)
        held_out = document is not None and is_held_out(doc_id, rules.held_out_fraction)
        fates.append(
            Fate(index, found.index + 1, found.byte, document, held_out, reason, repaired=False, tokens=found.tokens)
        )
    return fates
