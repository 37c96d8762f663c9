"""Last stage: near-duplicates and contaminated documents go, the text of the others is cleaned, cut and written.

What was dropped at any stage is gathered here too, so that a source's folder tells the fate of every raw record.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from cpt_dist.corpus.curation.apply import Tally, apply
from cpt_dist.corpus.curation.job import (
    EVALUATION,
    FINISH,
    READ,
    SCORE,
    Job,
    Unit,
    file_of,
    read_record,
    write_record,
)
from cpt_dist.corpus.curation.near import near_duplicates_of
from cpt_dist.corpus.curation.paragraphs import ParagraphCutter
from cpt_dist.corpus.curation.score import first_record
from cpt_dist.corpus.curation.step_lists import after_near_dedup, of_chunking
from cpt_dist.corpus.curation.tables import (
    DROPPED,
    DroppedDocument,
    TableWriter,
    copy_dropped,
    dropped_row,
    read_documents,
    write_curated,
)
from cpt_dist.corpus.ngrams import NgramIndex
from cpt_dist.corpus.step import CuratedDocument, Dropped, Splitter, Step
from cpt_dist.curation_pipeline_config import COUNT
from cpt_dist.files import file_checksum

NEAR_STEP = "near_duplicates"
NEAR_DUPLICATE, CONTAMINATED = "near_duplicate", "contaminated"
_WORDS_SHOWN = 400


class PartFiles:
    """The curated documents of a unit, in files of about `part_bytes` of text each."""

    def __init__(self, folder: Path, unit: Unit, part_bytes: int, columns: dict[str, list[str]]) -> None:
        self._folder, self._unit, self._part_bytes = folder, unit, part_bytes
        self._columns = [columns["scores"], columns["labels"], columns["counts"]]
        self._documents: list[CuratedDocument] = []
        self._size = 0
        self.files: list[dict[str, Any]] = []

    def add(self, document: CuratedDocument) -> None:
        """Add a document; a part that is full is written."""
        self._documents.append(document)
        self._size += len(document.text)
        if self._size >= self._part_bytes:
            self.close()

    def close(self) -> None:
        """Write what is left."""
        if not self._documents:
            return
        path = self._folder / f"part-{self._unit.block:05d}-{len(self.files):03d}.parquet"
        write_curated(path, self._documents, self._columns)
        size = path.stat().st_size
        documents = len(self._documents)
        self.files.append({"file": path.name, "bytes": size, "documents": documents, "xxh3": file_checksum(path)})
        self._documents, self._size = [], 0


class Decontaminate:
    """Drops, or only counts, documents that have words of an evaluation text in a row."""

    name = "decontamination"

    def __init__(self, job: Job) -> None:
        self._index, self._items = _evaluation_index(job)
        self._only_count = job.pipeline.decontamination.action == COUNT

    def __call__(self, document: CuratedDocument) -> CuratedDocument | Dropped:
        """`document`, if no text of the evaluation occurs in it."""
        found = next(self._index.items_in(document.text), None)
        if found is None:
            return document
        item, words = found
        if self._only_count:
            counts = {**document.counts, CONTAMINATED: 1}
            return CuratedDocument(**{**vars(document), "counts": counts})
        return Dropped(CONTAMINATED, f"{self._items[item]}: {words[:_WORDS_SHOWN]}")


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


def _steps(job: Job, unit: Unit) -> Sequence[Step | Splitter]:
    """The steps for documents that are no near-duplicates, up to chunking."""
    source = job.source_of(unit)
    has_evaluation = any(source.name == EVALUATION for source in job.sources)
    paragraphs = [ParagraphCutter(job, unit)] if job.pipeline.paragraph_duplicates.enabled else []
    decontaminate = [Decontaminate(job)] if has_evaluation else []
    return [*paragraphs, *after_near_dedup(source), *decontaminate]


def finish_unit(job: Job, unit: Unit) -> None:
    """Write `unit`'s curated documents and all that were dropped on the way."""
    source, tally = job.source_of(unit), Tally()
    stem = job.stem(FINISH, unit)
    if source.is_evaluation:
        write_record(stem, {**tally.as_json(), "job": job.fingerprint, "parts": [], "dropped": None})
        return
    near = near_duplicates_of(job, unit)
    steps, chunking = _steps(job, unit), of_chunking(source)
    folder = job.output(unit)
    folder.mkdir(parents=True, exist_ok=True)
    scored = job.stem(SCORE, unit)
    parts = PartFiles(folder, unit, job.block_bytes, read_record(scored)["columns"])
    dropped = folder / f"dropped-{unit.block:05d}.parquet"
    with TableWriter(dropped, DROPPED) as dropped_rows:
        copy_dropped(file_of(job.stem(READ, unit), "dropped.parquet"), dropped_rows, first_record(job, unit))
        copy_dropped(file_of(scored, "dropped.parquet"), dropped_rows, 0)
        for row, document in enumerate(read_documents(file_of(scored, "parquet"), source.name)):
            size = len(document.text.encode())
            if row in near:
                tally.of(NEAR_STEP).drop(NEAR_DUPLICATE, size)
                gone = DroppedDocument.of(document, NEAR_STEP, _near_reason(job, near[row]))
                dropped_rows.add(dropped_row(gone, source.name), size)
                continue
            tally.of(NEAR_STEP).keep(size, size)
            for result in apply(steps, document, tally):
                if isinstance(result, CuratedDocument):
                    tally.note(result)  # whole, as each chunk carries all that was counted
                    for piece in apply(chunking, result, tally):
                        assert isinstance(piece, CuratedDocument), piece
                        parts.add(piece)
                else:
                    dropped_rows.add(dropped_row(result, source.name), result.num_bytes)
        parts.close()
    entry = {"file": dropped.name, "bytes": dropped.stat().st_size, "documents": dropped_rows.num_rows}
    entry["xxh3"] = file_checksum(dropped)
    write_record(stem, {**tally.as_json(), "job": job.fingerprint, "parts": parts.files, "dropped": entry})


def _near_reason(job: Job, entry: Any) -> Dropped:
    keeper = job.source_of(job.units[int(entry["keeper"])]).name
    similarity = f"{float(entry['similarity']):.2f}"
    return Dropped(NEAR_DUPLICATE, f"{similarity} like {bytes(entry['keeper_id']).hex()} in '{keeper}'")
