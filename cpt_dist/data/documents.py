"""From raw records to documents: what each record becomes, and the count of every fate.

Each record has exactly one fate: kept, held out, or dropped for one reason. Nothing is tokenised or written here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from cpt_dist.corpus.inputs import InputFile
from cpt_dist.corpus.normalise import document_id, is_held_out, normalise
from cpt_dist.corpus.read import read_records
from cpt_dist.data.shard_writer import Document

EMPTY, TOO_SHORT, DUPLICATE = "empty", "too_short", "duplicate"
BATCH_DOCUMENTS = 1024
BATCH_BYTES = 4 << 20


@dataclass(frozen=True)
class Rules:
    """The settings that decide a record's fate (fields of SourceConfig and DataConfig)."""

    text_field: str
    invalid_utf8: str
    min_bytes: int
    held_out_fraction: float


@dataclass(frozen=True)
class Fate:
    """What became of one record, and where reading goes on after it."""

    next_input: int
    next_record: int
    byte: int | None
    """Offset of the record in its uncompressed file, where it is known."""
    document: Document | None
    """None where the record was dropped."""
    held_out: bool
    reason: str | None
    repaired: bool
    tokens: np.ndarray | None = None
    """Tokens of an imported or instruction document; None where its text is still to be tokenised."""
    targets: tuple[tuple[int, int], ...] = ()
    """Instruction data: the spans of `tokens` that are to be predicted."""
    values: dict[str, Any] = field(default_factory=dict)
    """The record's values under the fields of scores and label."""


@dataclass
class Counts:
    """Fates of a source's records; `read` == `kept` + `held_out` + sum of `dropped`."""

    read: int = 0
    kept: int = 0
    held_out: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    repaired_utf8: int = 0
    """Records, among those read, in which invalid UTF-8 was replaced by U+FFFD."""
    tokens: int = 0
    """Training tokens, separators included."""
    bytes: int = 0
    """UTF-8 bytes of the kept documents."""

    def add(self, fate: Fate) -> None:
        """Count one record; `tokens` is counted by who makes them."""
        self.read += 1
        self.repaired_utf8 += fate.repaired
        if fate.reason is not None:
            self.dropped[fate.reason] = self.dropped.get(fate.reason, 0) + 1
        elif fate.held_out:
            self.held_out += 1
        elif fate.document is not None:
            self.kept += 1
            self.bytes += fate.document.num_bytes

    def as_json(self) -> dict[str, Any]:
        """A copy as plain JSON values, reasons in alphabetic order."""
        return {**asdict(self), "dropped": dict(sorted(self.dropped.items()))}


def fates(
    inputs: list[InputFile], rules: Rules, seen: set[bytes], start: tuple[int, int] = (0, 0), others: Sequence[str] = ()
) -> Iterator[Fate]:
    """The fate of every record from (input, record) `start` on, in order; ids of new documents are added to `seen`.

    `others` are the fields whose values a fate keeps. Raises what `read_records` raises.
    """
    for index in range(start[0], len(inputs)):
        first = start[1] if index == start[0] else 0
        for record in read_records(inputs[index], rules.text_field, rules.invalid_utf8, first, others):
            document, reason = None, record.problem
            if record.text is not None:
                text = normalise(record.text)
                num_bytes = len(text.encode("utf-8"))
                doc_id = document_id(text)
                if not text or text.isspace():
                    reason = EMPTY
                elif num_bytes < rules.min_bytes:
                    reason = TOO_SHORT
                elif doc_id in seen:
                    reason = DUPLICATE
                else:
                    seen.add(doc_id)
                    document = Document(doc_id, text, num_bytes, record.file, record.index, record.byte)
            held_out = document is not None and is_held_out(document.id, rules.held_out_fraction)
            where = (index, record.index + 1, record.byte)
            yield Fate(*where, document, held_out, reason, record.repaired, values=record.values)


def batches(stream: Iterator[Fate]) -> Iterator[list[Fate]]:
    """Runs of at most BATCH_DOCUMENTS records, ended early once their text reaches BATCH_BYTES."""
    batch: list[Fate] = []
    num_bytes = 0
    for fate in stream:
        batch.append(fate)
        num_bytes += fate.document.num_bytes if fate.document else 0
        if len(batch) >= BATCH_DOCUMENTS or num_bytes >= BATCH_BYTES:
            yield batch
            batch, num_bytes = [], 0
    if batch:
        yield batch
