"""Second stage: of documents with one id, the first one stays: by priority of its source, then in the order of inputs.

A bucket holds all ids of a kind, so buckets are independent of each other; memory is that of one bucket.
"""

from __future__ import annotations

import numpy as np

from cpt_dist.corpus.curation.job import EXACT, READ, Job, Unit, file_of, read_record, write_record
from cpt_dist.corpus.curation.read import IDS
from cpt_dist.files import atomic_write

DUPLICATES = np.dtype([("unit", "<u4"), ("row", "<u4"), ("keeper", "<u4")])
"""A duplicate, by unit and row in it, and the unit of the document that stays."""


def exact_bucket(job: Job, bucket: int) -> None:
    """Write which documents of all units in `bucket` are duplicates, ordered by unit and row."""
    tables, units = [], []
    for unit in job.units:
        stem = job.stem(READ, unit)
        start, stop = read_record(stem)["ids_by_bucket"][bucket : bucket + 2]
        if stop > start:
            tables.append(np.array(np.load(file_of(stem, "ids.npy"), mmap_mode="r")[start:stop]))
            units.append(np.full(stop - start, unit.number, np.uint32))
    table = np.concatenate(tables) if tables else np.empty(0, IDS)
    found = _duplicates(table, np.concatenate(units) if units else np.empty(0, np.uint32))
    stem = job.bucket_stem(EXACT, bucket)
    with atomic_write(file_of(stem, "npy")) as handle:
        np.save(handle, found)
    write_record(stem, {"job": job.fingerprint, "documents": len(table), "duplicates": len(found)})


def _duplicates(table: np.ndarray, units: np.ndarray) -> np.ndarray:
    """`table` lists (id, row) by unit and row; a stable sort leaves the first of each id in front."""
    halves = np.ascontiguousarray(table["id"]).view("<u8").reshape(-1, 2)
    order = np.lexsort((np.arange(len(table)), halves[:, 0], halves[:, 1]))
    ordered = halves[order]
    is_first = np.ones(len(table), bool)
    is_first[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    firsts = np.maximum.accumulate(np.where(is_first, np.arange(len(table)), 0))
    later = np.flatnonzero(~is_first)
    found = np.empty(len(later), DUPLICATES)
    found["unit"], found["row"] = units[order[later]], table["row"][order[later]]
    found["keeper"] = units[order[firsts[later]]]
    return found[np.lexsort((found["row"], found["unit"]))]


def duplicates_of(job: Job, unit: Unit) -> dict[int, int]:
    """Row of a unit -> unit of the document with the same id that stays instead."""
    result: dict[int, int] = {}
    for bucket in range(job.num_buckets):
        found = np.load(file_of(job.bucket_stem(EXACT, bucket), "npy"), mmap_mode="r")
        start, stop = np.searchsorted(found["unit"], [unit.number, unit.number + 1])
        result.update(zip(found["row"][start:stop].tolist(), found["keeper"][start:stop].tolist(), strict=True))
    return result
