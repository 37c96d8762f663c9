"""What becomes of documents that have words of an evaluation item in a row: dropped, cut, or only counted.

The cut is that of GPT-3 (Brown et al. 2020, arXiv 2005.14165, appendix C): the words go with a margin on both sides,
what is left are documents of their own, and a document of which too many pieces would be left goes as a whole.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from cpt_dist.corpus.curation.job import EVALUATION, READ, Job, file_of
from cpt_dist.corpus.curation.tables import read_documents
from cpt_dist.corpus.ngrams import NgramIndex
from cpt_dist.corpus.step import CuratedDocument, Cut, Dropped, RemovedText
from cpt_dist.corpus.steps.chunking import chunk_id
from cpt_dist.corpus.steps.repair import with_counts
from cpt_dist.curation_pipeline_config import COUNT, DOCUMENT

STEP = "decontamination"
CONTAMINATED = "contaminated"
_WORDS_SHOWN = 400
_LONGEST_WORD = 40

Window = tuple[int, int, str]
"""Characters from and up to, and why they go."""


class Decontaminate:
    """Drops, cuts, or only counts documents that have words of an evaluation text in a row."""

    name = STEP

    def __init__(self, job: Job) -> None:
        self._settings = job.pipeline.decontamination
        self._index, self._items = _evaluation_index(job)

    def __call__(self, document: CuratedDocument) -> CuratedDocument | Dropped | Cut:
        """`document`, if no text of the evaluation occurs in it."""
        found = next(self._index.items_in(document.text), None)
        if found is None:
            return document
        if self._settings.action == COUNT:
            return replace(document, counts=with_counts(document, {CONTAMINATED: 1}))
        item, words = found
        detail = self._detail(item, words)
        if self._settings.action == DOCUMENT:
            return Dropped(CONTAMINATED, detail)
        windows = self._windows(document.text)
        cut = cut_out(document, windows)
        if not cut.pieces:
            return Dropped(CONTAMINATED, f"{detail} (nothing is left beside it)")
        if len(cut.pieces) > self._settings.max_pieces:
            return Dropped(CONTAMINATED, f"{detail} ({len(cut.pieces)} pieces would be left)")
        return cut

    def _detail(self, item: int, words: str) -> str:
        return f"{self._items[item]}: {words[:_WORDS_SHOWN]}"

    def _windows(self, text: str) -> list[Window]:
        """What is to be cut out: the words with their margins, joined where too little would be left between them."""
        settings = self._settings
        windows = []
        for start, end, item, words in self._index.places_in(text):
            start = _word_start(text, max(start - settings.margin_characters, 0))
            end = _word_end(text, min(end + settings.margin_characters, len(text)))
            windows.append((start, end, self._detail(item, words)))
        return joined_windows(windows, len(text), settings.min_piece_characters)


def _word_start(text: str, at: int) -> int:
    """`at`, or where the word begins that it stands in."""
    low = max(at - _LONGEST_WORD, 0)
    start = at
    while start > low and text[start - 1].isalnum():
        start -= 1
    return start if start == 0 or not text[start - 1].isalnum() else at


def _word_end(text: str, at: int) -> int:
    """`at`, or where the word ends that it stands in."""
    high = min(at + _LONGEST_WORD, len(text))
    end = at
    while end < high and text[end].isalnum():
        end += 1
    return end if end == len(text) or not text[end].isalnum() else at


def joined_windows(windows: Iterable[Window], length: int, least: int) -> list[Window]:
    """Windows in their order, none closer to another or to the ends of a text of `length` than `least` characters."""
    result: list[Window] = []
    for start, end, detail in sorted(windows):
        if result and start - result[-1][1] < least:
            result[-1] = (result[-1][0], max(end, result[-1][1]), result[-1][2])
        else:
            result.append((start if start >= least else 0, end, detail))
    if result and length - result[-1][1] < least:
        result[-1] = (result[-1][0], length, result[-1][2])
    return result


def cut_out(document: CuratedDocument, windows: Sequence[Window]) -> Cut:
    """The document without `windows` (in order, apart from each other): a piece for each part that is left.

    A piece knows the document (`parent`) and where it stood there; the first one has the document's counts.
    """
    parent = document.parent or document.id
    removed = [RemovedText(document, start, end, detail) for start, end, detail in windows]
    bounds = [0, *itertools.chain.from_iterable((start, end) for start, end, _ in windows), len(document.text)]
    pieces: list[CuratedDocument] = []
    for start, end in zip(bounds[::2], bounds[1::2], strict=True):
        if document.text[start:end].strip():
            offset = document.offset + start
            counts = {} if pieces else with_counts(document, {f"{CONTAMINATED}_spans": len(removed)})
            text = document.text[start:end]
            pieces.append(
                replace(document, id=chunk_id(parent, offset), text=text, parent=parent, offset=offset, counts=counts)
            )
    return Cut(pieces, removed)


@lru_cache(maxsize=1)
def _loaded_index(fingerprint: str, paths: tuple[Path, ...], ngram: int) -> tuple[NgramIndex, list[str]]:
    texts, places, suites = [], [], []
    for path in paths:
        for document in read_documents(path, EVALUATION):
            texts.append(document.text)
            places.append(f"{document.origin.file}:{document.origin.index}")
            suites.append(document.origin.file)
    return NgramIndex(texts, ngram, suites), places


def _evaluation_index(job: Job) -> tuple[NgramIndex, list[str]]:
    """The n-grams of all evaluation texts, and where each text is from; made once in a process."""
    units = [unit for unit in job.units if job.source_of(unit).name == EVALUATION]
    paths = tuple(file_of(job.stem(READ, unit), "parquet") for unit in units)
    return _loaded_index(job.fingerprint, paths, job.pipeline.decontamination.ngram)
