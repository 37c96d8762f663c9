"""Optional last stage: documents of one repository, book or case become one, which is cut and written as any other.

The stage before writes a source's documents by buckets of what they are joined by, so that a bucket holds all of a
group. Which raw record stands where in a joined document is kept (`members-*.parquet`), so nothing is lost by it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash

from cpt_dist.corpus.curation.apply import Tally, apply
from cpt_dist.corpus.curation.job import FINISH, JOIN, CuratedSource, Job, Unit, file_of, read_record, write_record
from cpt_dist.corpus.curation.parts import PartFiles, file_entry
from cpt_dist.corpus.curation.step_lists import of_chunking
from cpt_dist.corpus.curation.tables import DOCUMENTS, TableWriter, document_row, read_documents
from cpt_dist.corpus.repositories import Joined, join, join_repository
from cpt_dist.corpus.step import CuratedDocument
from cpt_dist.curation_config import DEPENDENCIES, FIELD_ORDER, JoiningConfig

STEP = "joining"
ENDING = "join.parquet"
MEMBERS = pa.schema(
    [
        ("document", pa.string()),
        ("group", pa.string()),
        ("place", pa.string()),
        ("offset", pa.int64()),
        ("characters", pa.int64()),
        ("id", pa.string()),
        ("parent", pa.string()),
        ("file", pa.string()),
        ("record", pa.int64()),
        ("byte", pa.int64()),
    ]
)
"""What joined documents consist of: the id of the joined one, where a member stands in it, and where that is from."""


def bucket_of(document: CuratedDocument, num_buckets: int) -> int:
    """The bucket of a document: that of its group, or any for one that is joined with nothing."""
    key = document.id if document.group is None else document.group.encode()
    return xxhash.xxh3_64_intdigest(key) % num_buckets


def write_by_bucket(path: Path, documents: Sequence[CuratedDocument], num_buckets: int) -> list[int]:
    """Write documents by bucket, in row groups of their own; returns where each bucket begins, and the end."""
    buckets: list[list[CuratedDocument]] = [[] for _ in range(num_buckets)]
    for document in documents:
        buckets[bucket_of(document, num_buckets)].append(document)
    starts = [0]
    with TableWriter(path, DOCUMENTS) as writer:
        for bucket in buckets:
            for document in bucket:
                writer.add(document_row(document), len(document.text))
            writer.end_group()
            starts.append(writer.num_groups)
    return starts


def join_bucket(job: Job, number: int) -> None:
    """Join the documents of a bucket, cut what is too long and write it."""
    source_number, bucket = job.join_units[number]
    source = job.sources[source_number]
    units = [unit for unit in job.units if unit.source == source_number]
    tally, members, folder = Tally(), list[dict[str, Any]](), job.folder / source.name
    parts = PartFiles(folder, bucket, job.block_bytes, _columns(job, units))
    chunking = of_chunking(source)
    for group in _groups(job, source, units, bucket):
        joined = _joined(group, source)
        sizes = [len(one.text.encode()) for one in group]
        tally.of(STEP).join(sizes, sum(sizes) if len(group) == 1 else len(joined.document.text.encode()))
        if len(group) > 1:
            members += _members(joined)
            tally.note_counts({"joined_documents": len(group), "joined_groups": 1})
        for piece in apply(chunking, joined.document, tally):
            assert isinstance(piece, CuratedDocument), piece
            parts.add(piece)
    parts.close()
    path = folder / f"members-{bucket:05d}.parquet"
    with TableWriter(path, MEMBERS) as rows:
        for member in members:
            rows.add(member, len(member["place"] or ""))
    record = {"job": job.fingerprint, "parts": parts.files, "members": file_entry(path, len(members))}
    write_record(job.bucket_stem(JOIN, number), {**tally.as_json(), **record})


def _columns(job: Job, units: Sequence[Unit]) -> dict[str, list[str]]:
    """Names of what the documents of a source carry, the same for all of its parts."""
    found = [read_record(job.stem(FINISH, unit))["columns"] for unit in units]
    return {kind: sorted({name for one in found for name in one[kind]}) for kind in ("scores", "labels", "counts")}


def _groups(job: Job, source: CuratedSource, units: Sequence[Unit], bucket: int) -> Iterator[list[CuratedDocument]]:
    """The documents of a bucket by group, in the order in which groups begin in the raw files."""
    groups: dict[str | int, list[CuratedDocument]] = {}
    for unit in units:
        stem = job.stem(FINISH, unit)
        first, stop = read_record(stem)["row_groups_by_bucket"][bucket : bucket + 2]
        for document in read_documents(file_of(stem, ENDING), source.name, groups=range(first, stop)):
            groups.setdefault(len(groups) if document.group is None else document.group, []).append(document)
    yield from groups.values()


def _joined(group: list[CuratedDocument], source: CuratedSource) -> Joined:
    """The documents of a group as one; a single one stays as it is."""
    settings = source.joining
    assert settings is not None
    if len(group) == 1:
        return Joined(group[0], ())
    name = str(group[0].group)
    if settings.order == DEPENDENCIES:
        return join_repository(name, group)
    ordered = _in_order(group, settings)
    last = len(ordered) - 1
    return join(name, [("", one, settings.separator if place < last else "") for place, one in enumerate(ordered)])


def _in_order(group: list[CuratedDocument], settings: JoiningConfig) -> list[CuratedDocument]:
    if settings.order != FIELD_ORDER:
        return group
    try:
        return sorted(group, key=lambda one: float(str(one.place)))
    except ValueError:
        return sorted(group, key=lambda one: str(one.place))


def _members(joined: Joined) -> Iterator[dict[str, Any]]:
    for part in joined.parts:
        one = part.document
        yield {
            "document": joined.document.id.hex(),
            "group": one.group,
            "place": one.place,
            "offset": part.offset,
            "characters": len(one.text),
            "id": one.id.hex(),
            "parent": one.parent.hex() if one.parent else None,
            "file": one.origin.file,
            "record": one.origin.index,
            "byte": one.origin.byte,
        }
