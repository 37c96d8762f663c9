"""A sample of the documents of raw files in one pass, with what it says about all of them.

Kept are the documents whose hashes are smallest, as many as a number of bytes holds: a uniform sample of the different
documents (bottom-k sampling; Cohen and Kaplan 2007, "Summarizing Data using Bottom-k Sketches") that doesn't hang on
the order of files. A kept document has been kept since it first came, so its copies are counted exactly. Only the
sample is in memory.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cpt_dist.corpus.inputs import InputFile, find_inputs
from cpt_dist.corpus.normalise import document_id, normalise
from cpt_dist.corpus.read import read_records
from cpt_dist.errors import UserError


@dataclass(frozen=True)
class SampledDocument:
    """A document of the sample: `id` and `text` as held-out documents have them."""

    id: str
    """The hash of its text (hex)."""
    text: str
    num_bytes: int
    copies: int
    """How often the same text came."""


@dataclass(frozen=True)
class CorpusSample:
    """A uniform sample of different documents, in the order of their ids, and the counts of all documents."""

    documents: list[SampledDocument]
    num_documents: int
    """Copies included, as in `num_bytes`."""
    num_bytes: int
    num_without_text: int
    """Records that have no usable text."""
    num_files: int
    is_whole: bool
    """The sample holds every different document."""

    @property
    def different_bytes(self) -> float:
        """Bytes of different documents: all of them times the share that the sample's first copies have of its all."""
        seen = sum(one.num_bytes * one.copies for one in self.documents)
        return self.num_bytes * sum(one.num_bytes for one in self.documents) / seen if seen else 0.0

    @property
    def duplicate_share(self) -> float:
        """Part of the bytes that repeats another document exactly."""
        return 1 - self.different_bytes / self.num_bytes if self.num_bytes else 0.0


def _texts(inputs: Sequence[InputFile], text_field: str) -> Iterable[str | None]:
    for item in inputs:
        for record in read_records(item, text_field):
            text = normalise(record.text) if record.text is not None else ""
            yield text if text.strip() else None


def sample_corpus(patterns: Sequence[str], key: str, text_field: str, sample_bytes: int) -> CorpusSample:
    """Read the files that `patterns` name, once. Raises UserError, with `key`, where they hold no text."""
    inputs, _ = find_inputs(patterns, key)
    kept: dict[int, list] = {}
    """Hash -> [id, text, bytes, copies]."""
    order: list[int] = []  # a heap of negated hashes: the largest first
    held, border = 0, 1 << 128
    num_documents = num_bytes = without = 0
    for text in _texts(inputs, text_field):
        if text is None:
            without += 1
            continue
        size = len(text.encode())
        num_documents += 1
        num_bytes += size
        name = document_id(text)
        number = int.from_bytes(name, "big")
        if number in kept:
            kept[number][3] += 1
            continue
        if number >= border:
            continue
        kept[number] = [name.hex(), text, size, 1]
        heapq.heappush(order, -number)
        held += size
        while held > sample_bytes and len(order) > 1:
            border = -heapq.heappop(order)
            held -= kept.pop(border)[2]
    if not num_documents:
        found = f"{without:,} records without usable text" if without else "nothing"
        raise UserError(
            f"{key}: its {len(inputs)} file(s) hold {found} under '{text_field}'; set text_field or give others"
        )
    documents = [SampledDocument(*kept[number]) for number in sorted(kept)]
    return CorpusSample(documents, num_documents, num_bytes, without, len(inputs), border == 1 << 128)
