"""A run of steps over documents, in which every document that is read is counted as kept or dropped at each of them.

The counts of a unit are summed to those of a source, so kept + dropped = read holds there because it holds here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cpt_dist.corpus.curation.tables import DroppedDocument
from cpt_dist.corpus.step import CuratedDocument, Dropped, Splitter, Step


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
        """Label -> value -> documents."""
        self.notes: dict[str, int] = {}
        """What steps counted in the documents, such as pii_email."""
        self.columns: dict[str, set[str]] = {"scores": set(), "labels": set(), "counts": set()}
        """Names of what documents carry."""

    def of(self, step: str) -> StepCounts:
        """The counts of a step, none as yet at its first call."""
        return self.steps.setdefault(step, StepCounts())

    def note(self, document: CuratedDocument) -> None:
        """Sum up what a document carries when it leaves the unit."""
        for name, value in document.labels.items():
            values = self.labels.setdefault(name, {})
            values[value] = values.get(value, 0) + 1
        for name, number in document.counts.items():
            self.notes[name] = self.notes.get(name, 0) + number
        self.columns["scores"] |= document.scores.keys()
        self.columns["labels"] |= document.labels.keys()
        self.columns["counts"] |= document.counts.keys()

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "steps": {name: counts.as_json() for name, counts in self.steps.items()},
            "labels": {name: dict(sorted(values.items())) for name, values in sorted(self.labels.items())},
            "notes": dict(sorted(self.notes.items())),
            "columns": {name: sorted(names) for name, names in self.columns.items()},
        }


def apply(
    steps: Sequence[Step | Splitter], document: CuratedDocument, tally: Tally
) -> Iterator[CuratedDocument | DroppedDocument]:
    """What `document` becomes: itself changed, its pieces, or the record of its being dropped."""
    waiting = [(document, len(document.text.encode()), 0)]
    while waiting:
        document, size, first = waiting.pop()
        for index in range(first, len(steps)):
            step = steps[index]
            result = step(document)
            if isinstance(result, Dropped):
                tally.of(step.name).drop(result.reason, size)
                yield DroppedDocument.of(document, step.name, result)
                break
            if isinstance(result, CuratedDocument):
                after = size if result.text is document.text else len(result.text.encode())
                tally.of(step.name).keep(size, after)
                document, size = result, after
                continue
            tally.of(step.name).keep(size, size, len(result))
            waiting.extend((piece, len(piece.text.encode()), index + 1) for piece in reversed(result))
            break
        else:
            yield document
