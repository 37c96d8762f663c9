"""Third stage: documents that are no exact duplicates get their labels and scores, and signatures for the next one.

Thresholds drop documents here, so what is dropped is never the reason why a near-duplicate of it goes.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from cpt_dist.corpus.curation.apply import Tally, apply
from cpt_dist.corpus.curation.exact import duplicates_of
from cpt_dist.corpus.curation.job import READ, SCORE, Job, Unit, file_of, read_record, write_record
from cpt_dist.corpus.curation.minhash import Signer, band_hashes, choose_bands
from cpt_dist.corpus.curation.step_lists import before_near_dedup
from cpt_dist.corpus.curation.tables import (
    DOCUMENTS,
    DROPPED,
    DroppedDocument,
    TableWriter,
    document_row,
    dropped_row,
    read_documents,
)
from cpt_dist.corpus.normalise import is_held_out
from cpt_dist.corpus.step import CuratedDocument, Dropped
from cpt_dist.files import atomic_write, file_checksum

EXACT_STEP = "exact_duplicates"
DUPLICATE = "duplicate"
RANKS = np.dtype([("id", "V16"), ("held_out", "?"), ("score", "<f4")])
"""What decides which of like documents stays."""
BATCH_DOCUMENTS, BATCH_CHARACTERS = 1024, 4 << 20


def score_unit(job: Job, unit: Unit) -> None:
    """Write `unit`'s scored documents, those dropped, and (for near-duplicates) signatures, bands and ranks."""
    stem, source, tally = job.stem(SCORE, unit), job.source_of(unit), Tally()
    duplicates = duplicates_of(job, unit)
    steps = before_near_dedup(job, source)
    documents, dropped = file_of(stem, "parquet"), file_of(stem, "dropped.parquet")
    inputs = read_documents(file_of(job.stem(READ, unit), "parquet"), source.name, first_record(job, unit))
    with ExitStack() as files:
        kept_rows = files.enter_context(TableWriter(documents, DOCUMENTS))
        dropped_rows = files.enter_context(TableWriter(dropped, DROPPED))
        signatures = files.enter_context(SignatureFiles(job, stem))
        for row, document in enumerate(inputs):
            keeper = duplicates.get(row)
            size = len(document.text.encode())
            if keeper is not None:
                tally.of(EXACT_STEP).drop(DUPLICATE, size)
                why = Dropped(DUPLICATE, f"of a document in '{job.source_of(job.units[keeper]).name}'")
                gone = DroppedDocument.of(document, EXACT_STEP, why, with_text=False)
                dropped_rows.add(dropped_row(gone, source.name), 0)
                continue
            tally.of(EXACT_STEP).keep(size, size)
            for result in apply(steps, document, tally):
                if isinstance(result, CuratedDocument):
                    kept_rows.add(document_row(result), len(result.text))
                    signatures.add(result)
                    tally.note(result)
                elif isinstance(result, DroppedDocument):
                    dropped_rows.add(dropped_row(result, source.name), result.num_bytes)
    record: dict[str, Any] = {"job": job.fingerprint, "documents": kept_rows.num_rows, "xxh3": file_checksum(documents)}
    write_record(stem, {**tally.as_json(), **record, "batches": signatures.batches})


def first_record(job: Job, unit: Unit) -> int:
    """What is to be added to the record numbers of `unit`: the lines of its file that earlier blocks have."""
    blocks = job.source_of(unit).blocks
    path = blocks[unit.block].continues
    lines, block = 0, unit.block
    while path is not None and blocks[block].continues == path:
        block -= 1
        lines += read_record(job.stem(READ, Unit(0, unit.source, block)))["lines"]
    return lines


class SignatureFiles:
    """Signatures, band hashes and ranks of a unit's documents, written batch by batch as they come."""

    def __init__(self, job: Job, stem: Path) -> None:
        self._near = job.pipeline.near_duplicates
        self._held_out = job.held_out_fraction
        self._files = ExitStack()
        self._stem = stem
        self._signer = Signer(self._near.shingle_words, self._near.permutations)
        self._bands = choose_bands(self._near.threshold, self._near.permutations)
        self._documents: list[CuratedDocument] = []
        self._characters = 0
        self._ranks: list[np.ndarray] = []
        self.batches: list[int] = []
        """Documents in each batch; band hashes lie batch by batch, [bands, documents]."""

    def __enter__(self) -> SignatureFiles:
        with ExitStack() as files:
            self._signature_file = files.enter_context(atomic_write(file_of(self._stem, "signatures")))
            self._band_file = files.enter_context(atomic_write(file_of(self._stem, "bands")))
            self._rank_file = files.enter_context(atomic_write(file_of(self._stem, "ranks.npy")))
            self._files = files.pop_all()
        return self

    def add(self, document: CuratedDocument) -> None:
        """Add the next document; nothing happens where near-duplicates are not looked for."""
        if not self._near.enabled:
            return
        self._documents.append(document)
        self._characters += len(document.text)
        if len(self._documents) >= BATCH_DOCUMENTS or self._characters >= BATCH_CHARACTERS:
            self._flush()

    def _flush(self) -> None:
        documents = self._documents
        signatures, has_words = self._signer.signatures([one.text for one in documents])
        bands = band_hashes(signatures, self._bands)
        bands[:, ~has_words] = 0  # a text without words resembles nothing
        self._signature_file.write(signatures.tobytes())
        self._band_file.write(bands.tobytes())
        ranks = np.empty(len(documents), RANKS)
        for row, one in enumerate(documents):
            score = one.scores.get(self._near.keep_by, -np.inf)
            ranks[row] = (one.id, is_held_out(one.id, self._held_out), score)
        self._ranks.append(ranks)
        self.batches.append(len(documents))
        self._documents, self._characters = [], 0

    def __exit__(self, *error: Any) -> None:
        try:
            if error[0] is None:
                if self._documents:
                    self._flush()
                np.save(self._rank_file, np.concatenate([np.empty(0, RANKS), *self._ranks]))
        finally:
            self._files.__exit__(*error)
