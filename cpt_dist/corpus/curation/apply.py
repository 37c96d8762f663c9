"""A run of steps over documents, in which every document that is read is counted as kept or dropped at each of them.

The counts of a unit are summed to those of a source, so kept + dropped = read holds there because it holds here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cpt_dist.corpus.curation.tables import DroppedDocument
from cpt_dist.corpus.step import CuratedDocument, Cut, Dropped, RemovedText, Splitter, Step


@dataclass
class StepCounts:
    """What a step did to the documents of a unit or of a source."""

    read: int = 0
    kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    """Reason -> documents."""
    bytes_read: int = 0
    bytes_kept: int = 0
    """UTF-8 bytes of the kept documents, as the step left them."""
    pieces: int = 0
    """Documents that the kept ones became; more than those where the step splits."""

    def keep(self, before: int, after: int, pieces: int = 1) -> None:
        """Count a kept document of `before` bytes."""
        self.read += 1
        self.kept += 1
        self.pieces += pieces
        self.bytes_read += before
        self.bytes_kept += after

    def join(self, sizes: Sequence[int], after: int) -> None:
        """Count documents of `sizes` bytes that became one of `after`."""
        self.read += len(sizes)
        self.kept += len(sizes)
        self.pieces += 1
        self.bytes_read += sum(sizes)
        self.bytes_kept += after

    def drop(self, reason: str, num_bytes: int) -> None:
        """Count a dropped document."""
        self.read += 1
        self.bytes_read += num_bytes
        self.dropped[reason] = self.dropped.get(reason, 0) + 1

    def add(self, other: Mapping[str, Any]) -> None:
        """Add the counts of another unit, as `as_json` gave them."""
        for name in ("read", "kept", "bytes_read", "bytes_kept", "pieces"):
            setattr(self, name, getattr(self, name) + other[name])
        for reason, number in other["dropped"].items():
            self.dropped[reason] = self.dropped.get(reason, 0) + number

    def as_json(self) -> dict[str, Any]:
        """The counts as JSON values; AssertionError where a document has no fate or two."""
        assert self.kept + sum(self.dropped.values()) == self.read, self
        return {**vars(self), "dropped": dict(sorted(self.dropped.items()))}


class Tally:
    """The counts of a unit, step by step in their order, and what else is summed over its documents."""

    def __init__(self) -> None:
        self.steps: dict[str, StepCounts] = {}
        self.labels: dict[str, dict[str, int]] = {}
        """Label -> value -> documents that leave the unit."""
        self.labels_dropped: dict[str, dict[str, int]] = {}
        """Label -> value -> documents that were dropped with it."""
        self.notes: dict[str, int] = {}
        """What steps counted in the documents, such as pii_email."""
        self.columns: dict[str, set[str]] = {"scores": set(), "labels": set(), "counts": set()}
        """Names of what documents carry."""

    def of(self, step: str) -> StepCounts:
        """The counts of a step, none as yet at its first call."""
        return self.steps.setdefault(step, StepCounts())

    def note(self, document: CuratedDocument) -> None:
        """Sum up what a document carries when it leaves the unit."""
        add_labels(self.labels, document.labels)
        self.note_counts(document.counts)
        self.columns["scores"] |= document.scores.keys()
        self.columns["labels"] |= document.labels.keys()
        self.columns["counts"] |= document.counts.keys()

    def note_counts(self, counts: Mapping[str, int]) -> None:
        """Add to the sums over documents."""
        for name, number in counts.items():
            self.notes[name] = self.notes.get(name, 0) + number

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "steps": {name: counts.as_json() for name, counts in self.steps.items()},
            "labels": _sorted(self.labels),
            "labels_dropped": _sorted(self.labels_dropped),
            "notes": dict(sorted(self.notes.items())),
            "columns": {name: sorted(names) for name, names in self.columns.items()},
        }


def add_labels(sums: dict[str, dict[str, int]], labels: Mapping[str, str]) -> None:
    """Count a document with these labels."""
    for name, value in labels.items():
        values = sums.setdefault(name, {})
        values[value] = values.get(value, 0) + 1


def _sorted(labels: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    return {name: dict(sorted(values.items())) for name, values in sorted(labels.items())}


def apply(
    steps: Sequence[Step | Splitter], document: CuratedDocument, tally: Tally
) -> Iterator[CuratedDocument | DroppedDocument | RemovedText]:
    """What `document` becomes: itself changed, its pieces and what was cut out, or the record of its being dropped."""
    waiting = [(document, len(document.text.encode()), 0)]
    while waiting:
        document, size, first = waiting.pop()
        for index in range(first, len(steps)):
            step = steps[index]
            result = step(document)
            if isinstance(result, Dropped):
                tally.of(step.name).drop(result.reason, size)
                add_labels(tally.labels_dropped, {**document.labels, **result.labels})
                yield DroppedDocument.of(document, step.name, result)
                break
            if isinstance(result, CuratedDocument):
                after = size if result.text is document.text else len(result.text.encode())
                tally.of(step.name).keep(size, after)
                document, size = result, after
                continue
            pieces = result.pieces if isinstance(result, Cut) else result
            if isinstance(result, Cut):
                yield from result.removed
            sizes = [len(piece.text.encode()) for piece in pieces]
            tally.of(step.name).keep(size, sum(sizes), len(sizes))
            following = [(piece, length, index + 1) for piece, length in zip(pieces, sizes, strict=True)]
            waiting.extend(reversed(following))
            break
        else:
            yield document
