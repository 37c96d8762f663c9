"""Optional stages: paragraphs that stood elsewhere before are cut out of the documents that stay.

The first occurrence counts by the priority of its source, then in the order of inputs. Near-duplicates are gone by
then, so the document with the first occurrence does stay. A paragraph ends at a blank line and is compared by the
words in it.
"""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import xxhash

from cpt_dist.corpus.curation.job import (
    PARAGRAPH_BUCKETS,
    PARAGRAPHS,
    SCORE,
    Job,
    Unit,
    file_of,
    read_record,
    write_record,
)
from cpt_dist.corpus.curation.near import near_duplicates_of
from cpt_dist.corpus.curation.tables import read_documents
from cpt_dist.corpus.step import CuratedDocument, Dropped
from cpt_dist.files import atomic_write

CUT = "duplicate_paragraphs"
PLACE = np.dtype([("hash", "<u8"), ("row", "<u4"), ("paragraph", "<u4")])
_REPEATED = np.dtype([("unit", "<u4"), ("row", "<u4"), ("paragraph", "<u4")])
_BREAK = re.compile(r"(\n[ \t]*\n\s*)")


def paragraphs_of(text: str) -> list[str]:
    """The paragraphs of a text, each with the blank lines after it; joined they are the text."""
    pieces = _BREAK.split(text)
    return ["".join(pieces[at : at + 2]) for at in range(0, len(pieces), 2)]


def paragraph_hash(paragraph: str) -> int:
    """xxh3-64 of a paragraph, in lower case and with runs of white space as one."""
    return xxhash.xxh3_64_intdigest(" ".join(paragraph.casefold().split()).encode())


def paragraphs_unit(job: Job, unit: Unit) -> None:
    """Write the hashes of paragraphs of `unit`'s documents that are no near-duplicates, by bucket."""
    stem = job.stem(PARAGRAPHS, unit)
    near = near_duplicates_of(job, unit)
    least = job.pipeline.paragraph_duplicates.min_bytes
    places = []
    name = job.source_of(unit).name
    for row, document in enumerate(read_documents(file_of(job.stem(SCORE, unit), "parquet"), name)):
        if row not in near:
            for number, paragraph in enumerate(paragraphs_of(document.text)):
                if len(paragraph.encode()) >= least:
                    places.append((paragraph_hash(paragraph), row, number))
    table = np.array(places, PLACE)
    buckets = table["hash"] % np.uint64(job.num_buckets)
    order = np.argsort(buckets, kind="stable")
    with atomic_write(file_of(stem, "npy")) as handle:
        np.save(handle, table[order])
    starts = np.searchsorted(buckets[order], np.arange(job.num_buckets + 1))
    write_record(stem, {"job": job.fingerprint, "paragraphs": len(table), "by_bucket": [int(at) for at in starts]})


def paragraph_bucket(job: Job, bucket: int) -> None:
    """Write the paragraphs of `bucket` that stood before, by unit, row and number."""
    tables, units = [np.empty(0, PLACE)], [np.empty(0, np.uint32)]
    for unit in job.units:
        stem = job.stem(PARAGRAPHS, unit)
        start, stop = read_record(stem)["by_bucket"][bucket : bucket + 2]
        tables.append(np.array(np.load(file_of(stem, "npy"), mmap_mode="r")[start:stop]))
        units.append(np.full(stop - start, unit.number, np.uint32))
    table, unit_numbers = np.concatenate(tables), np.concatenate(units)
    order = np.argsort(table["hash"], kind="stable")  # units come by priority, rows and paragraphs in their order
    is_repeated = np.zeros(len(table), bool)
    is_repeated[1:] = table["hash"][order][1:] == table["hash"][order][:-1]
    chosen = np.sort(order[is_repeated])
    found = np.empty(len(chosen), _REPEATED)
    found["unit"], found["row"] = unit_numbers[chosen], table["row"][chosen]
    found["paragraph"] = table["paragraph"][chosen]
    stem = job.bucket_stem(PARAGRAPH_BUCKETS, bucket)
    with atomic_write(file_of(stem, "npy")) as handle:
        np.save(handle, found)
    write_record(stem, {"job": job.fingerprint, "repeated": len(found)})


class ParagraphCutter:
    """A step that cuts the repeated paragraphs of a unit's documents out; it knows them by origin."""

    name = "duplicate_paragraphs"

    def __init__(self, job: Job, unit: Unit) -> None:
        by_row: dict[int, set[int]] = {}
        for bucket in range(job.num_buckets):
            table = np.load(file_of(job.bucket_stem(PARAGRAPH_BUCKETS, bucket), "npy"), mmap_mode="r")
            start, stop = np.searchsorted(table["unit"], [unit.number, unit.number + 1])
            for _, row, paragraph in table[start:stop].tolist():
                by_row.setdefault(row, set()).add(paragraph)
        name = job.source_of(unit).name
        self._cuts: dict[bytes, set[int]] = {}
        if by_row:
            for row, document in enumerate(read_documents(file_of(job.stem(SCORE, unit), "parquet"), name)):
                if row in by_row:
                    self._cuts[document.id] = by_row[row]

    def __call__(self, document: CuratedDocument) -> CuratedDocument | Dropped:
        """`document` without its repeated paragraphs; dropped where no other has any text."""
        cuts = self._cuts.get(document.id)
        if not cuts:
            return document
        left = "".join(one for number, one in enumerate(paragraphs_of(document.text)) if number not in cuts)
        if not left.strip():
            return Dropped(CUT, "all its paragraphs stood elsewhere before")
        return replace(document, text=left, counts={**document.counts, CUT: len(cuts)})
