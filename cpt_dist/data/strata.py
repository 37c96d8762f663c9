"""Strata: a source parted by a score, length or label, each part a view that reads like a source of its own.

The partition is exact: every document is in one stratum, those without a value in `unscored`. Edges by quantiles are
computed from the columns of the source's first generation alone, so a source that grows keeps the strata that it has.
A view holds no data; which documents are its own is computed from the shard's columns when asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from cpt_dist.data.columns import LABEL_COLUMN, SCORE_PREFIX
from cpt_dist.data.shards import Source
from cpt_dist.data.view_names import parse_view
from cpt_dist.errors import UserError, nearest
from cpt_dist.strata_config import LABEL, LENGTH, OTHER, UNSCORED, StrataConfig, stratum_names


@dataclass(frozen=True)
class Partition:
    """A definition of strata with its edges or labels resolved.

    By a score or length: `names` [n + 1] rise with the value, and stratum i + 1 begins at `edges` [n]. By label:
    `groups` is label -> stratum. Documents without a value are in `unscored`, those of other labels in `other`.
    """

    by: str
    names: tuple[str, ...]
    edges: tuple[float, ...] = ()
    groups: tuple[tuple[str, str], ...] = ()

    @property
    def strata(self) -> list[str]:
        """All names, those for documents without a value and of other labels last."""
        return [*self.names, *([OTHER] if self.by == LABEL and OTHER not in self.names else []), UNSCORED]

    def describe(self, stratum: str) -> str:
        """What makes a document belong to a stratum, in a few words; part of the stratum's fingerprint."""
        if stratum == UNSCORED:
            return f"{self.by} missing"
        if self.by == LABEL:
            inside = stratum != OTHER
            labels = sorted(label for label, name in self.groups if (name == stratum) == inside)
            return f"label {'in' if inside else 'not in'} {labels}"
        bounds = ("-inf", *(repr(edge) for edge in self.edges), "inf")
        place = self.names.index(stratum)
        return f"{self.by} in [{bounds[place]}, {bounds[place + 1]})"

    def assign(self, source: Source, shard: int) -> np.ndarray:
        """Index into `strata` of each document of a shard: int64 [num_documents]."""
        if self.by == LABEL:
            places = {name: number for number, name in enumerate(self.strata)}
            groups = dict(self.groups)
            vocabulary = source.manifest["columns"]["label"]["vocabulary"]
            table = np.array([places[groups.get(label, OTHER)] for label in vocabulary], dtype=np.int64)
            labels = _column(source, shard, LABEL_COLUMN)
            result = np.full(labels.size, places[UNSCORED], dtype=np.int64)
            known = labels < table.size
            result[known] = table[labels[known]]
            return result
        values = _values(source, shard, self.by)
        # Of equal values and edges, the value is above: side="right" counts the edges at or below it.
        result = np.searchsorted(np.array(self.edges), values, side="right").astype(np.int64)
        result[np.isnan(values)] = len(self.names)
        return result


def resolve(strata: StrataConfig, source: Source) -> Partition:
    """The partition that `strata` means for a source, with quantiles computed from its shards.

    Raises UserError where the source has no such column, or its values are too few for the quantiles.
    """
    _check_columns(strata, source)
    if strata.by == LABEL:
        vocabulary = source.manifest["columns"]["label"]["vocabulary"]
        groups = strata.labels or {label: [label] for label in sorted(vocabulary)}
        if UNSCORED in groups:
            raise UserError(
                f"source '{source.name}': its label '{UNSCORED}' is the name of the stratum of documents without a "
                f"label; give it another one in data.sources.{source.name}.strata.labels"
            )
        pairs = tuple(sorted((label, name) for name, labels in groups.items() for label in labels))
        return Partition(LABEL, tuple(sorted(groups)), groups=pairs)
    names = tuple(stratum_names(strata))
    if strata.quantiles:
        return Partition(strata.by, names, _quantile_edges(strata, source))
    edges = [float(edge if strata.by == LENGTH else np.float16(edge)) for edge in strata.edges]
    if len(set(edges)) < len(edges):
        raise UserError(
            f"data.sources.{source.name}.strata.edges: {list(strata.edges)} are not all different once stored as "
            "float16, as scores are; take edges farther apart"
        )
    return Partition(strata.by, names, tuple(edges))


def _check_columns(strata: StrataConfig, source: Source) -> None:
    columns = source.manifest.get("columns", {})
    has = {LENGTH, *columns.get("scores", {}), *([LABEL] if "label" in columns else [])}
    if strata.by not in has:
        field = "label_field" if strata.by == LABEL else f"score_fields.{strata.by}"
        raise UserError(
            f"source '{source.name}': its shards hold no '{strata.by}' ({nearest(strata.by, has)}); set "
            f"data.sources.{source.name}.{field}, choose another data.shards and run launch/prepare.py"
        )
    if strata.by == LABEL and strata.labels:
        vocabulary = columns["label"]["vocabulary"]
        unknown = [label for labels in strata.labels.values() for label in labels if label not in vocabulary]
        if len(unknown) == sum(len(labels) for labels in strata.labels.values()):
            raise UserError(
                f"data.sources.{source.name}.strata.labels: no document has any of {sorted(unknown)}; "
                f"its labels: {', '.join(sorted(vocabulary)[:20]) or 'none'}"
            )


def _column(source: Source, shard: int, name: str) -> np.ndarray:
    column = source.column(shard, name)
    assert column is not None, "the manifest lists the columns that every shard of a source has"
    return column


def _values(source: Source, shard: int, by: str) -> np.ndarray:
    """The value of each document of a shard, NaN where it has none: float64 [num_documents]."""
    if by == LENGTH:
        return np.diff(source.doc_offsets(shard)).astype(np.float64)
    return _column(source, shard, SCORE_PREFIX + by).astype(np.float64)


def _quantile_edges(strata: StrataConfig, source: Source) -> tuple[float, ...]:
    """Values v_1 < v_2 < … such that stratum i begins at the value of the document number i N / n, sorted by value.

    Counts of different values are merged shard by shard: float16 has at most 65,536, and lengths repeat too.
    """
    values, counts = np.empty(0), np.empty(0, dtype=np.int64)
    for shard in range(len(source.shard_tokens)):
        found = _values(source, shard, strata.by)
        more, more_counts = np.unique(found[~np.isnan(found)], return_counts=True)
        values, inverse = np.unique(np.concatenate([values, more]), return_inverse=True)
        merged = np.zeros(values.size, dtype=np.int64)
        np.add.at(merged, inverse, np.concatenate([counts, more_counts]))
        counts = merged
    before = np.concatenate([[0], np.cumsum(counts)])
    total = int(before[-1])
    ranks = [total * part // strata.quantiles for part in range(1, strata.quantiles)]
    edges = [float(values[int(np.searchsorted(before, rank, side="right")) - 1]) for rank in ranks] if total else []
    if not edges or sorted({float(values[0]), *edges}) != [float(values[0]), *edges]:
        raise UserError(
            f"data.sources.{source.name}.strata.quantiles: {strata.quantiles} quantiles of '{strata.by}' would begin "
            f"at {[round(edge, 4) for edge in edges]}, of {values.size} different values of {total} documents, and "
            "leave a stratum empty; take fewer quantiles, or edges"
        )
    return tuple(edges)


class Stratum(Source):
    """A view of a source that holds the documents of one stratum; it reads as the source does.

    `source` is a whole one, or one generation of it. Token ranges and document numbers are those of its shards.
    """

    def __init__(self, source: Source, partition: Partition, stratum: str) -> None:
        self.__dict__.update(source.__dict__)  # the same mapped files, and what of them was verified
        self.source, self.partition, self.stratum = source, partition, stratum
        self.name = str(parse_view(source.name)._replace(stratum=stratum))
        self.fingerprint = f"{source.fingerprint}, {partition.describe(stratum)}"
        self._place = partition.strata.index(stratum)

    def documents(self, shard: int) -> np.ndarray:
        """int64, rising: numbers of the shard's documents in this stratum."""
        return np.flatnonzero(_assigned(self.source, self.partition, shard) == self._place)

    @property
    def num_documents(self) -> int:
        """Training documents of the stratum; reads the columns of all shards."""
        return sum(self.documents(shard).size for shard in range(len(self.shard_tokens)))

    @property
    def num_tokens(self) -> int:
        """Training tokens of the stratum; reads the columns of all shards."""
        lengths = ((np.diff(self.doc_offsets(n).astype(np.int64)), n) for n in range(len(self.shard_tokens)))
        return sum(int(tokens[self.documents(shard)].sum()) for tokens, shard in lengths)


@lru_cache(maxsize=8)
def _assigned(source: Source, partition: Partition, shard: int) -> np.ndarray:
    """`Partition.assign`, kept for the strata that ask one after the other."""
    return partition.assign(source, shard)


def strata_of(source: Source, partition: Partition) -> list[Source]:
    """All strata of a source; `unscored` and `other` only where they have a document."""
    views = [Stratum(source, partition, name) for name in partition.strata]
    return [view for view in views if view.stratum in partition.names or view.num_documents]
