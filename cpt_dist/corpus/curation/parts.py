"""The files that a source's curated documents are written into."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cpt_dist.corpus.curation.tables import write_curated
from cpt_dist.corpus.step import CuratedDocument
from cpt_dist.files import file_checksum

DOCUMENT_BYTES = 500
"""About what a document takes in memory beside its text; it counts too, as a part is held until it's written."""


def file_entry(path: Path, documents: int) -> dict[str, Any]:
    """What a manifest says of a file with so many rows."""
    return {"file": path.name, "bytes": path.stat().st_size, "documents": documents, "xxh3": file_checksum(path)}


class PartFiles:
    """The curated documents of a block or a bucket, in files of about `part_bytes` each."""

    def __init__(self, folder: Path, number: int, part_bytes: int, columns: dict[str, list[str]]) -> None:
        self._folder, self._number, self._part_bytes = folder, number, part_bytes
        self._columns = [columns["scores"], columns["labels"], columns["counts"]]
        self._documents: list[CuratedDocument] = []
        self._size = 0
        self.files: list[dict[str, Any]] = []

    def add(self, document: CuratedDocument) -> None:
        """Add a document; a part that is full is written."""
        self._documents.append(document)
        self._size += len(document.text) + DOCUMENT_BYTES
        if self._size >= self._part_bytes:
            self.close()

    def close(self) -> None:
        """Write what is left."""
        if not self._documents:
            return
        path = self._folder / f"part-{self._number:05d}-{len(self.files):03d}.parquet"
        write_curated(path, self._documents, self._columns)
        self.files.append(file_entry(path, len(self._documents)))
        self._documents, self._size = [], 0
