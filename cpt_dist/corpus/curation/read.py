"""First stage: raw records become normalised documents with ids, and the ids go into buckets.

Nothing here needs another document. The bytes of a unit's files depend on its block alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np

from cpt_dist.corpus.curation.apply import Tally, apply
from cpt_dist.corpus.curation.fit import SAMPLE_FILE, sample_bound
from cpt_dist.corpus.curation.job import READ, CuratedSource, Job, Unit, file_of, write_record
from cpt_dist.corpus.curation.step_lists import before_dedup
from cpt_dist.corpus.curation.tables import (
    DOCUMENTS,
    DROPPED,
    DroppedDocument,
    TableWriter,
    document_row,
    dropped_row,
)
from cpt_dist.corpus.read import LINES_END, Record
from cpt_dist.corpus.remote_inputs import fetched
from cpt_dist.corpus.slices import Slice, read_slice
from cpt_dist.corpus.step import CuratedDocument, Origin, RemovedText
from cpt_dist.curation_config import INPUT_ORDER
from cpt_dist.files import atomic_write, file_checksum

EMPTY = "empty"
READ_STEP = "read"
IDS = np.dtype([("id", "V16"), ("row", "<u4")])


def read_unit(job: Job, unit: Unit) -> None:
    """Write `unit`'s documents, its dropped records and its ids by bucket."""
    stem, source, tally = job.stem(READ, unit), job.source_of(unit), Tally()
    ids: list[bytes] = []
    lines = 0
    repaired = 0
    steps, bound = before_dedup(source), sample_bound(source)
    documents, dropped = file_of(stem, "parquet"), file_of(stem, "dropped.parquet")
    with ExitStack() as files:
        kept_rows = files.enter_context(TableWriter(documents, DOCUMENTS))
        dropped_rows = files.enter_context(TableWriter(dropped, DROPPED))
        sample = files.enter_context(TableWriter(file_of(stem, SAMPLE_FILE), DOCUMENTS))
        for part in source.blocks[unit.block].slices:
            for record in _records(job, source, part):
                if record.problem == LINES_END:
                    lines += record.index
                    continue
                repaired += record.repaired
                for result in _results(source, record, steps, tally):
                    if isinstance(result, CuratedDocument):
                        kept_rows.add(document_row(result), len(result.text))
                        if result.id < bound:
                            sample.add(document_row(result), len(result.text))
                        ids.append(result.id)
                        tally.note(result)
                    else:
                        dropped_rows.add(dropped_row(result, source.name), result.num_bytes)
    starts = _write_ids(job, stem, ids)
    write_record(
        stem,
        {
            **tally.as_json(),
            "job": job.fingerprint,
            "documents": len(ids),
            "lines": lines,
            "repaired_utf8": repaired,
            "ids_by_bucket": starts,
            "xxh3": file_checksum(documents),
        },
    )


def _records(job: Job, source: CuratedSource, part: Slice) -> Iterator[Record]:
    """The records of a slice; a file behind a URL is fetched for as long as it's read."""
    if part.item.url is None:
        yield from read_slice(part, source.text_field, job.invalid_utf8, source.fields)
        return
    folder = job.folder / "work" / "fetched"
    with fetched(part.item, folder, job.storage_options, job.fetch_retries) as path:
        local = replace(part, item=replace(part.item, path=path))
        for record in read_slice(local, source.text_field, job.invalid_utf8, source.fields):
            yield replace(record, file=part.item.url)


def _results(
    source: CuratedSource, record: Record, steps: Any, tally: Tally
) -> Iterator[CuratedDocument | DroppedDocument]:
    origin = Origin(record.file, record.index, record.byte)
    if record.text is None:
        tally.of(READ_STEP).drop(str(record.problem), 0)
        yield DroppedDocument(READ_STEP, str(record.problem), "", origin)
        return
    size = len(record.text.encode())
    tally.of(READ_STEP).keep(size, size)
    scores = {
        name: float(value)
        for name, field in source.score_fields.items()
        if isinstance(value := record.values.get(field), (int, float)) and not isinstance(value, bool)
    }
    label = record.values.get(source.label_field) if source.label_field else None
    labels = {"label": label.strip()} if isinstance(label, str) and label.strip() else {}
    group, place = _group_and_place(source, record)
    document = CuratedDocument(b"", record.text, source.name, origin, scores, labels, group=group, place=place)
    for result in apply(steps, document, tally):
        assert not isinstance(result, RemovedText), result
        yield result


def _group_and_place(source: CuratedSource, record: Record) -> tuple[str | None, str | None]:
    """What the record is joined with, and where it stands there; (None, None) where it doesn't say either."""
    joining = source.joining
    if joining is None or joining.by is None:
        return None, None
    group = _as_text(record.values.get(joining.by))
    place = _as_text(record.values.get(joining.order_field))
    return (None, None) if group is None or (place is None and joining.order != INPUT_ORDER) else (group, place)


def _as_text(value: Any) -> str | None:
    """A text or a number as text; None for anything else and for a blank text."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    return str(value).strip() or None


def _write_ids(job: Job, stem: Any, ids: list[bytes]) -> list[int]:
    """Write (id, row) ordered by bucket, then row; returns where each bucket begins, and the end."""
    table = np.empty(len(ids), IDS)
    table["id"] = np.frombuffer(b"".join(ids), "V16") if ids else np.empty(0, "V16")
    table["row"] = np.arange(len(ids))
    buckets = bucket_of(table["id"], job.num_buckets)
    order = np.argsort(buckets, kind="stable")
    with atomic_write(file_of(stem, "ids.npy")) as handle:
        np.save(handle, table[order])
    return [int(at) for at in np.searchsorted(buckets[order], np.arange(job.num_buckets + 1))]


def bucket_of(ids: np.ndarray, num_buckets: int) -> np.ndarray:
    """The bucket of each id (V16), by its last 8 bytes: the first ones decide what is held out."""
    halves = np.ascontiguousarray(ids).view("<u8").reshape(-1, 2)
    return halves[:, 1] % np.uint64(num_buckets)
