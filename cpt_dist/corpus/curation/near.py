"""Fourth stage: documents that are nearly the same, over all sources, and which of them stays.

Documents that share a band of their signatures are compared, a part of one band's hashes at a time. Connected ones
make a cluster, and in each the best document comes first: what resembles one that stays goes, so that two that stay
never resemble each other, and a document is never dropped for a chain of others alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from cpt_dist.corpus.curation.job import (
    BANDS,
    CLUSTERS,
    HELD_OUT_PRIORITY,
    PRIORITIES,
    SCORE,
    Job,
    Unit,
    file_of,
    read_record,
    write_record,
)
from cpt_dist.corpus.curation.minhash import choose_bands, similarities
from cpt_dist.corpus.curation.score import RANKS
from cpt_dist.files import atomic_write

NODE = np.dtype("<u8")
"""A document as unit * 2^32 + row."""
NEAR = np.dtype([("unit", "<u4"), ("row", "<u4"), ("keeper", "<u4"), ("keeper_id", "V16"), ("similarity", "<f4")])
"""A near-duplicate, by unit and row, and what stays instead: its unit, its id, and how like it is."""
MOST_LEADERS = 64
"""Documents of one bucket that others are compared with; more that are unlike each other share a band by chance."""
BAND_GROUPS = 4
"""Units that the bands are dealt out to, for each bucket of hashes."""
LARGEST_LISTED = 100
_ROW_BITS = np.uint64(32)
_GATHERED = 1 << 16


class Signatures:
    """Signatures and ranks of documents of any units, read from their files as they are asked for."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._shape = job.pipeline.near_duplicates.permutations

    def of(self, nodes: np.ndarray) -> np.ndarray:
        """Signatures of nodes, u32 [nodes, permutations]."""
        result = np.empty((len(nodes), self._shape), np.uint32)
        for unit, places, rows in _by_unit(nodes):
            path = file_of(self._job.stem(SCORE, self._job.units[unit]), "signatures")
            result[places] = np.memmap(path, np.uint32, "r").reshape(-1, self._shape)[rows]
        return result

    def ranks(self, nodes: np.ndarray) -> np.ndarray:
        """Ranks (RANKS) of nodes."""
        result = np.empty(len(nodes), RANKS)
        for unit, places, rows in _by_unit(nodes):
            path = file_of(self._job.stem(SCORE, self._job.units[unit]), "ranks.npy")
            result[places] = np.load(path, mmap_mode="r")[rows]
        return result


def _by_unit(nodes: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(unit, places in `nodes`, rows of the unit) for each unit that occurs."""
    units = nodes >> _ROW_BITS
    rows = nodes & np.uint64(0xFFFFFFFF)
    for unit in np.unique(units):
        places = np.flatnonzero(units == unit)
        yield int(unit), places, rows[places].astype(np.int64)


def band_buckets(job: Job) -> int:
    """Buckets of the search: each takes some of the bands and a part of their hashes."""
    return BAND_GROUPS * job.num_buckets


def band_bucket(job: Job, bucket: int) -> None:
    """Write the pairs of like documents, [pairs, 2] nodes, among those that share a hash of this bucket."""
    group, part = divmod(bucket, job.num_buckets)
    near = job.pipeline.near_duplicates
    bands = range(group, choose_bands(near.threshold, near.permutations).count, BAND_GROUPS)
    found = [_pairs_of_band(job, band, part) for band in bands]
    pairs = np.unique(np.concatenate([np.empty((0, 2), NODE), *(pairs for pairs, _ in found)]), axis=0)
    stem = job.bucket_stem(BANDS, bucket)
    with atomic_write(file_of(stem, "npy")) as handle:
        np.save(handle, pairs)
    candidates = sum(number for _, number in found)
    write_record(stem, {"job": job.fingerprint, "candidates": candidates, "pairs": len(pairs)})


def _pairs_of_band(job: Job, band: int, part: int) -> tuple[np.ndarray, int]:
    """(pairs of like documents, documents that share a hash with another one)."""
    hashes, nodes = _members(job, band, part)
    order = np.lexsort((nodes, hashes))
    hashes, nodes = hashes[order], nodes[order]
    is_first = np.ones(len(hashes), bool)
    is_first[1:] = hashes[1:] != hashes[:-1]
    starts = np.flatnonzero(is_first)
    sizes = np.diff(np.append(starts, len(hashes)))
    shared = np.repeat(sizes > 1, sizes)
    return _like_pairs(job, nodes[shared], sizes[sizes > 1]), int(shared.sum())


def _members(job: Job, band: int, part: int) -> tuple[np.ndarray, np.ndarray]:
    """(hashes of the band that belong to the part, their nodes), over all units."""
    near = job.pipeline.near_duplicates
    count = choose_bands(near.threshold, near.permutations).count
    hashes, nodes = [np.empty(0, np.uint64)], [np.empty(0, NODE)]
    for unit in job.units:
        stem = job.stem(SCORE, unit)
        path = file_of(stem, "bands")
        table = np.memmap(path, np.uint64, "r") if path.stat().st_size else np.empty(0, np.uint64)
        at = row = 0
        for size in read_record(stem)["batches"]:
            values = np.array(table[at + band * size : at + (band + 1) * size], dtype=np.uint64)
            mine = np.flatnonzero((values != 0) & (values % np.uint64(job.num_buckets) == part))
            hashes.append(values[mine])
            nodes.append((np.uint64(unit.number) << _ROW_BITS) + (mine + row).astype(np.uint64))
            at, row = at + count * size, row + size
    return np.concatenate(hashes), np.concatenate(nodes)


def _like_pairs(job: Job, nodes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Pairs at least as like as the threshold within groups of `sizes` consecutive nodes."""
    store, threshold = Signatures(job), job.pipeline.near_duplicates.threshold
    found: list[np.ndarray] = [np.empty((0, 2), NODE)]
    ends = np.cumsum(sizes)
    first = 0
    while first < len(sizes):
        start = ends[first] - sizes[first]
        last = max(first + 1, int(np.searchsorted(ends, start + _GATHERED, side="right")))
        signatures = store.of(nodes[start : ends[last - 1]])
        for group in range(first, last):
            low, high = ends[group] - sizes[group], ends[group]
            found.extend(_pairs_of_group(nodes[low:high], signatures[low - start : high - start], threshold))
        first = last
    return np.unique(np.concatenate(found), axis=0)


def _pairs_of_group(nodes: np.ndarray, signatures: np.ndarray, threshold: float) -> Iterator[np.ndarray]:
    """Each document with the first one before it that it's like, of at most MOST_LEADERS that are unlike each other."""
    left = np.arange(len(nodes))
    for _ in range(MOST_LEADERS):
        if len(left) < 2:
            return
        leader, left = left[0], left[1:]
        like = similarities(signatures[leader], signatures[left]) >= threshold
        members = left[like]
        yield np.stack([np.full(len(members), nodes[leader]), nodes[members]], axis=1)
        left = left[~like]


def find_clusters(job: Job) -> None:
    """Write which documents are near-duplicates (NEAR, by unit and row), and figures of the clusters."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    tables = [np.load(file_of(job.bucket_stem(BANDS, bucket), "npy")) for bucket in range(band_buckets(job))]
    pairs = np.unique(np.concatenate([np.empty((0, 2), NODE), *tables]), axis=0)
    nodes, places = np.unique(pairs, return_inverse=True)
    places = places.reshape(pairs.shape)
    graph = coo_array((np.ones(len(pairs), bool), (places[:, 0], places[:, 1])), shape=(len(nodes), len(nodes)))
    cluster = connected_components(graph, directed=False)[1] if len(nodes) else np.empty(0, np.int32)
    store = Signatures(job)
    ranks = store.ranks(nodes)
    order = _best_first(job, nodes, ranks, cluster)
    bounds = np.flatnonzero(np.diff(cluster[order], prepend=-1, append=-1))
    found = [np.empty(0, NEAR)]
    listed: list[dict[str, Any]] = []
    for low, high in itertools.pairwise(bounds):
        members = order[low:high]
        gone = _resolve(store, nodes[members], ranks[members], job.pipeline.near_duplicates.threshold)
        found.append(gone)
        number, best = int(high - low), bytes(ranks["id"][members[0]]).hex()
        listed.append({"documents": number, "kept": number - len(gone), "best": best, "nodes": nodes[members][:5]})
    table = np.concatenate(found)
    table = table[np.lexsort((table["row"], table["unit"]))]
    stem = job.bucket_stem(CLUSTERS, 0)
    with atomic_write(file_of(stem, "npy")) as handle:
        np.save(handle, table)
    write_record(stem, {"job": job.fingerprint, "duplicates": len(table), **_figures(job, listed, table)})


def _best_first(job: Job, nodes: np.ndarray, ranks: np.ndarray, cluster: np.ndarray) -> np.ndarray:
    """Places of nodes by cluster, then priority (evaluation and held out first), score (falling), id and place."""
    roles = np.array([PRIORITIES[job.source_of(unit).role] for unit in job.units])
    priority = roles[(nodes >> _ROW_BITS).astype(np.int64)] if len(nodes) else np.empty(0, int)
    priority = np.where(ranks["held_out"], np.minimum(priority, HELD_OUT_PRIORITY), priority)
    halves = np.ascontiguousarray(ranks["id"]).view(">u8").reshape(-1, 2)
    return np.lexsort((nodes, halves[:, 1], halves[:, 0], -ranks["score"], priority, cluster))


def _resolve(store: Signatures, nodes: np.ndarray, ranks: np.ndarray, threshold: float) -> np.ndarray:
    """The near-duplicates of a cluster whose nodes come best first: each one that is like a node that stays."""
    signatures = store.of(nodes)
    kept = [0]
    gone = []
    for place in range(1, len(nodes)):
        alike = similarities(signatures[place], signatures[kept])
        best = int(alike.argmax())
        if alike[best] < threshold:
            kept.append(place)
            continue
        keeper = kept[best]
        row = nodes[place] & np.uint64(0xFFFFFFFF)
        gone.append((nodes[place] >> _ROW_BITS, row, nodes[keeper] >> _ROW_BITS, ranks["id"][keeper], alike[best]))
    return np.array(gone, NEAR)


def _figures(job: Job, clusters: list[dict[str, Any]], table: np.ndarray) -> dict[str, Any]:
    """Numbers of clusters by size, the largest ones, and documents of each source that go for one of each other."""
    sizes: dict[str, int] = {}
    for one in clusters:
        bin_name = str(1 << (one["documents"] - 1).bit_length())
        sizes[bin_name] = sizes.get(bin_name, 0) + 1
    largest = sorted(clusters, key=lambda one: (-one["documents"], one["nodes"][0]))[:LARGEST_LISTED]
    names = [job.source_of(unit).name for unit in job.units]
    between: dict[str, dict[str, int]] = {}
    for unit, keeper in zip(table["unit"].tolist(), table["keeper"].tolist(), strict=True):
        row = between.setdefault(names[unit], {})
        row[names[keeper]] = row.get(names[keeper], 0) + 1
    return {
        "clusters": len(clusters),
        "sizes": dict(sorted(sizes.items(), key=lambda item: int(item[0]))),
        "largest": [{**one, "nodes": [[int(n >> 32), int(n & 0xFFFFFFFF)] for n in one["nodes"]]} for one in largest],
        "between": {name: dict(sorted(row.items())) for name, row in sorted(between.items())},
    }


def near_duplicates_of(job: Job, unit: Unit) -> dict[int, Any]:
    """Row of a unit -> its entry (NEAR)."""
    if not job.pipeline.near_duplicates.enabled:
        return {}
    table = np.load(file_of(job.bucket_stem(CLUSTERS, 0), "npy"), mmap_mode="r")
    start, stop = np.searchsorted(table["unit"], [unit.number, unit.number + 1])
    return {int(entry["row"]): entry for entry in np.array(table[start:stop])}
