"""What a step of curation is: a pure function from a document to a document, or to the reason why it is dropped.

Steps know nothing of files, tasks or other documents, so the same ones run in a loop, on all cores, in a Slurm array
or on Ray. What needs to see more than one document (deduplication, thresholds by percentile) is not a step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Origin:
    """Where the raw text of a document lies."""

    file: str
    index: int
    """Row, line or member of the file, counted from 0."""
    byte: int | None = None
    """Offset in the uncompressed file, where it is known."""


@dataclass(frozen=True)
class CuratedDocument:
    """A document on its way through the steps; never changed in place (`dataclasses.replace`)."""

    id: bytes
    """xxh3-128 of the normalised text (`normalise.document_id`), 16 bytes; it stays when steps change the text."""
    text: str
    source: str
    origin: Origin
    scores: Mapping[str, float] = field(default_factory=dict)
    """Name -> number; they become columns of the shards."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Name -> short text, such as language: en or content: code."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """What steps did to it, such as pii_email: 2 or mojibake_repaired: 1; summed up in the report."""
    parent: bytes | None = None
    """A chunk: the id of the whole document."""
    offset: int = 0
    """A chunk: characters of the whole document before it."""
    group: str | None = None
    """Value of the raw record's field that says what it's joined with (`JoiningConfig.by`)."""
    place: str | None = None
    """Value of the field that says where it stands there (`JoiningConfig.order_field`)."""


@dataclass(frozen=True)
class Dropped:
    """A document that goes no further."""

    reason: str
    """One of few, such as language or min_words; the report counts them."""
    detail: str = ""
    """What about this document, such as 'de, wanted en'; shown with samples."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """What the step found out before it dropped the document, such as language: de; counted in the report."""


@dataclass(frozen=True)
class RemovedText:
    """A part of a document that was cut out."""

    document: CuratedDocument
    """The document before the cut."""
    start: int
    end: int
    """Characters of `document.text`, from `start` up to and without `end`."""
    detail: str
    """Why it was."""


@dataclass(frozen=True)
class Cut:
    """What is left of a document of which parts were cut out."""

    pieces: Sequence[CuratedDocument]
    removed: Sequence[RemovedText]
    """Pieces and removed parts, in the order of their offsets, are the document."""


class Step(Protocol):
    """One step with its settings. It pickles, and gives the same result in every process and order."""

    @property
    def name(self) -> str:
        """What reports call it."""

    def __call__(self, document: CuratedDocument) -> CuratedDocument | Dropped | Cut:
        """The document as it goes on, what is left of it, or why it goes no further."""


class Splitter(Protocol):
    """A step that makes one document or several of one; nothing of its text is lost."""

    @property
    def name(self) -> str:
        """What reports call it."""

    def __call__(self, document: CuratedDocument) -> Sequence[CuratedDocument]:
        """The pieces in order; their texts joined are the document's text."""
