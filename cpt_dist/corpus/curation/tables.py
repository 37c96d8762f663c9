"""Documents on their way through curation, and those that were dropped, as Parquet files of bounded row groups.

A file's bytes depend on its rows alone. Intermediate tables have one schema; what is curated has a column for each
score, label and count.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import pyarrow as pa
from pyarrow import parquet

from cpt_dist.corpus.step import CuratedDocument, Dropped, Origin, RemovedText
from cpt_dist.files import atomic_write

GROUP_BYTES, GROUP_ROWS = 8 << 20, 4096
SCORE, LABEL, COUNT = "score.", "label.", "count."
"""How columns of scores, labels and counts begin."""
DOCUMENTS = pa.schema(
    [
        ("id", pa.binary(16)),
        ("text", pa.large_string()),
        ("file", pa.string()),
        ("record", pa.int64()),
        ("byte", pa.int64()),
        ("parent", pa.binary(16)),
        ("offset", pa.int64()),
        ("notes", pa.string()),
    ]
)
DROPPED = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("file", pa.string()),
        ("record", pa.int64()),
        ("byte", pa.int64()),
        ("step", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("bytes", pa.int64()),
        ("scores", pa.string()),
        ("text", pa.large_string()),
    ]
)
REMOVED = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("file", pa.string()),
        ("record", pa.int64()),
        ("byte", pa.int64()),
        ("offset", pa.int64()),
        ("bytes", pa.int64()),
        ("detail", pa.string()),
        ("text", pa.large_string()),
    ]
)
"""Parts that were cut out of documents; `offset` is in characters of the document as the step read it."""


@dataclass(frozen=True)
class DroppedDocument:
    """A record or document that goes no further, and where and why."""

    step: str
    reason: str
    detail: str
    origin: Origin
    id: bytes | None = None
    text: str | None = None
    """As it was when it was dropped; None where it never had one, or where the same text is kept elsewhere."""
    num_bytes: int = 0
    scores: Mapping[str, float] | None = None

    @classmethod
    def of(cls, document: CuratedDocument, step: str, why: Dropped, with_text: bool = True) -> DroppedDocument:
        """`document` as `step` dropped it."""
        num_bytes = len(document.text.encode())
        text = document.text if with_text else None
        return cls(step, why.reason, why.detail, document.origin, document.id, text, num_bytes, document.scores)


class TableWriter:
    """Writes rows into a Parquet file, a row group for every GROUP_BYTES of text."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._file = atomic_write(path)
        self._schema = schema
        self._rows: list[dict[str, Any]] = []
        self._size = 0
        self.num_rows = self.num_groups = 0

    def __enter__(self) -> TableWriter:
        handle: IO[bytes] = self._file.__enter__()
        self._writer = parquet.ParquetWriter(
            handle, self._schema, compression="zstd", compression_level=3, use_dictionary=False, write_statistics=False
        )
        return self

    def add(self, row: dict[str, Any], size: int) -> None:
        """Add a row whose text has about `size` bytes."""
        self._rows.append(row)
        self._size += size
        self.num_rows += 1
        if self._size >= GROUP_BYTES or len(self._rows) >= GROUP_ROWS:
            self.end_group()

    def end_group(self) -> None:
        """Begin a new row group, if there's any row in the last one."""
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
            self._rows, self._size = [], 0
            self.num_groups += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if kind is None:
                self.end_group()
            self._writer.close()
        finally:
            self._file.__exit__(kind, error, at)


def document_row(document: CuratedDocument) -> dict[str, Any]:
    """A document's row of an intermediate table."""
    notes: list[Any] = [dict(document.scores), dict(document.labels), dict(document.counts)]
    if document.group is not None:
        notes.append([document.group, document.place])
    origin = document.origin
    return {
        "id": document.id,
        "text": document.text,
        "file": origin.file,
        "record": origin.index,
        "byte": origin.byte,
        "parent": document.parent,
        "offset": document.offset,
        "notes": json.dumps(notes, ensure_ascii=False) if any(notes) else None,
    }


def read_documents(
    path: Path, source: str, first_record: int = 0, groups: Iterable[int] | None = None
) -> Iterator[CuratedDocument]:
    """The documents of an intermediate table (of some row groups); `first_record` is added to their record numbers."""
    with parquet.ParquetFile(path) as file:
        for number in range(file.num_row_groups) if groups is None else groups:
            for row in file.read_row_group(number).to_pylist():
                scores, labels, counts, *joining = json.loads(row["notes"]) if row["notes"] else ({}, {}, {})
                origin = Origin(row["file"], row["record"] + first_record, row["byte"])
                group, place = joining[0] if joining else (None, None)
                yield CuratedDocument(
                    row["id"],
                    row["text"],
                    source,
                    origin,
                    scores,
                    labels,
                    counts,
                    row["parent"],
                    row["offset"],
                    group,
                    place,
                )


def removed_row(removed: RemovedText, source: str) -> dict[str, Any]:
    """The row of a part that was cut out of a document."""
    document = removed.document
    text = document.text[removed.start : removed.end]
    return {
        "id": document.id.hex(),
        "source": source,
        "file": document.origin.file,
        "record": document.origin.index,
        "byte": document.origin.byte,
        "offset": document.offset + removed.start,
        "bytes": len(text.encode()),
        "detail": removed.detail,
        "text": text,
    }


def dropped_row(dropped: DroppedDocument, source: str) -> dict[str, Any]:
    """The row of a dropped record or document."""
    return {
        "id": dropped.id.hex() if dropped.id else None,
        "source": source,
        "file": dropped.origin.file,
        "record": dropped.origin.index,
        "byte": dropped.origin.byte,
        "step": dropped.step,
        "reason": dropped.reason,
        "detail": dropped.detail,
        "bytes": dropped.num_bytes,
        "scores": json.dumps(dict(dropped.scores)) if dropped.scores else None,
        "text": dropped.text,
    }


def copy_dropped(path: Path, writer: TableWriter, first_record: int) -> None:
    """Add the rows of an intermediate table of dropped records; `first_record` is added to their numbers."""
    with parquet.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            for row in file.read_row_group(group).to_pylist():
                writer.add({**row, "record": row["record"] + first_record}, row["bytes"])


def curated_schema(scores: Iterable[str], labels: Iterable[str], counts: Iterable[str]) -> pa.Schema:
    """The schema of curated documents with these scores, labels and counts."""
    fixed = [
        ("id", pa.string()),
        ("text", pa.large_string()),
        ("source", pa.string()),
        ("file", pa.string()),
        ("record", pa.int64()),
        ("byte", pa.int64()),
        ("parent", pa.string()),
        ("offset", pa.int64()),
    ]
    columns = [(SCORE + name, pa.float32()) for name in sorted(scores)]
    columns += [(LABEL + name, pa.string()) for name in sorted(labels)]
    columns += [(COUNT + name, pa.int64()) for name in sorted(counts)]
    return pa.schema(fixed + columns)


def write_curated(path: Path, documents: Sequence[CuratedDocument], columns: Sequence[Iterable[str]]) -> None:
    """Write curated documents; `columns` are the scores, labels and counts that have a column even if none has them."""
    scores, labels, counts = (set(names) for names in columns)
    for document in documents:
        scores |= document.scores.keys()
        labels |= document.labels.keys()
        counts |= document.counts.keys()
    with TableWriter(path, curated_schema(scores, labels, counts)) as writer:
        for one in documents:
            row = {
                "id": one.id.hex(),
                "text": one.text,
                "source": one.source,
                "file": one.origin.file,
                "record": one.origin.index,
                "byte": one.origin.byte,
                "parent": one.parent.hex() if one.parent else None,
                "offset": one.offset,
                **{SCORE + name: None if math.isnan(value) else value for name, value in one.scores.items()},
                **{LABEL + name: value for name, value in one.labels.items()},
                **{COUNT + name: value for name, value in one.counts.items()},
            }
            writer.add(row, len(one.text))
