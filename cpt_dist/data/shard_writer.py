"""The files of one part of a source: token shard, provenance table and held-out documents.

A part is what goes through memory at one time. Every file appears whole or not at all, and its bytes depend on the
documents alone, so that writing a part again after a crash gives the same files. `shards.py` reads them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
import zstandard

from cpt_dist.data.columns import arrays
from cpt_dist.data.cuts import LINES, PARAGRAPHS, Cuts
from cpt_dist.data.length_counts import TOKENS_BY_LENGTH, tokens_by_length
from cpt_dist.data.shards import FORMAT
from cpt_dist.files import atomic_write

BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Document:
    """A normalised document on its way into a shard or the held-out file."""

    id: bytes
    text: str
    num_bytes: int
    """UTF-8 bytes of `text`."""
    file: str
    record: int
    byte: int | None


@dataclass
class Part:
    """Documents gathered for the next shard and the next held-out file."""

    dtype: type[np.unsignedinteger]
    documents: list[Document] = field(default_factory=list)
    """Training documents; their text is dropped, their tokens are in `tokens`."""
    tokens: list[np.ndarray] = field(default_factory=list)
    columns: list[Mapping[str, float | int]] = field(default_factory=list)
    """Scores and label of each training document (`columns.py`)."""
    held_out: list[Document] = field(default_factory=list)
    num_tokens: int = 0
    held_out_bytes: int = 0
    loss_spans: list[tuple[int, int]] = field(default_factory=list)
    """Instruction data: the tokens [start, stop) of the part that are to be predicted."""

    cuts: Cuts = field(default_factory=Cuts)
    """Where long documents may be cut, as tokens of the part."""

    def add(
        self,
        document: Document,
        token_ids: Sequence[int] | np.ndarray,
        targets: Sequence[tuple[int, int]] = (),
        *,
        columns: Mapping[str, float | int] | None = None,
        cuts: Cuts | None = None,
    ) -> None:
        """Add a training document with its tokens, separator included, and its value in each column.

        `targets` of instruction data are the spans of these tokens that are to be predicted. `cuts` are offsets in
        these tokens.
        """
        if cuts is not None:
            own = cuts.shifted(self.num_tokens)
            self.cuts.paragraphs += own.paragraphs
            self.cuts.lines += own.lines
        self.columns.append(columns or {})
        self.loss_spans += [(self.num_tokens + start, self.num_tokens + stop) for start, stop in targets]
        self.documents.append(
            Document(document.id, "", document.num_bytes, document.file, document.record, document.byte)
        )
        self.tokens.append(np.array(token_ids, dtype=self.dtype))
        self.num_tokens += len(token_ids)

    def hold_out(self, document: Document) -> None:
        """Add a document for evaluation."""
        self.held_out.append(document)
        self.held_out_bytes += document.num_bytes


def block_checksums(content: bytes) -> list[str]:
    """xxh3-64 (hex) of each BLOCK_BYTES of a file's content; the last block may be shorter."""
    view = memoryview(content)
    return [xxhash.xxh3_64_hexdigest(view[at : at + BLOCK_BYTES]) for at in range(0, len(view), BLOCK_BYTES)]


def write_shard(path: Path, part: Part) -> dict[str, Any]:
    """Write the training documents of `part` as a safetensors shard; returns its entry in the manifest."""
    from safetensors.numpy import save

    lengths = np.array([len(tokens) for tokens in part.tokens], dtype=np.uint64)
    spans = {"loss_spans": np.array(part.loss_spans, dtype=np.uint64)} if part.loss_spans else {}
    offset_type = np.uint32 if part.num_tokens < 2**32 else np.uint64
    cuts = {PARAGRAPHS: part.cuts.paragraphs, LINES: part.cuts.lines}
    # One key of metadata only: safetensors keeps metadata in a hash map, so several come in any order.
    content = save(
        {
            "tokens": np.concatenate(part.tokens),
            "doc_offsets": np.concatenate([np.zeros(1, np.uint64), np.cumsum(lengths, dtype=np.uint64)]),
            "doc_id": np.frombuffer(b"".join(d.id for d in part.documents), dtype=np.uint8).reshape(-1, 16),
            "doc_bytes": np.array([d.num_bytes for d in part.documents], dtype=np.uint32),
            **spans,
            **{name: np.array(places, dtype=offset_type) for name, places in cuts.items() if places},
            **arrays(part.columns),
        },
        metadata={"format": FORMAT},
    )
    with atomic_write(path) as handle:
        handle.write(content)
    return {
        "file": path.name,
        "bytes": len(content),
        "documents": len(part.documents),
        "tokens": part.num_tokens,
        TOKENS_BY_LENGTH: tokens_by_length(lengths),
        "block_bytes": BLOCK_BYTES,
        "blocks": block_checksums(content),
    }


def write_held_out(path: Path, part: Part, source: str) -> dict[str, Any]:
    """Write the held-out documents of `part`, ordered by id; returns the file's entry in the manifest."""
    lines = [
        {"id": d.id.hex(), "text": d.text, "source": source, "file": d.file, "record": d.record, "byte": d.byte}
        for d in sorted(part.held_out, key=lambda d: d.id)
    ]
    raw = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
    content = zstandard.ZstdCompressor(level=6).compress(raw)
    with atomic_write(path) as handle:
        handle.write(content)
    checksum = xxhash.xxh3_64_hexdigest(content)
    return {"file": path.name, "bytes": len(content), "documents": len(lines), "xxh3": checksum}


def write_provenance(path: Path, part: Part, source: str, licence: str, language: str) -> dict[str, Any]:
    """Write where each training document of `part` is from (Parquet); returns the file's entry in the manifest.

    Columns: doc_id (hex), source, file, record, byte (null where unknown), licence, language, tokens, bytes, and those
    of scores and labels as they are in the shard.
    """
    import pyarrow as pa
    from pyarrow import parquet

    documents, same = part.documents, len(part.documents)
    table = pa.table(
        {
            "doc_id": pa.array([d.id.hex() for d in documents], pa.string()),
            "source": pa.array([source] * same, pa.string()),
            "file": pa.array([d.file for d in documents], pa.string()),
            "record": pa.array([d.record for d in documents], pa.int64()),
            "byte": pa.array([d.byte for d in documents], pa.int64()),
            "licence": pa.array([licence] * same, pa.string()),
            "language": pa.array([language] * same, pa.string()),
            "tokens": pa.array([len(tokens) for tokens in part.tokens], pa.int64()),
            "bytes": pa.array([d.num_bytes for d in documents], pa.int64()),
            **{name: pa.array(values) for name, values in arrays(part.columns).items()},
        }
    )
    buffer = pa.BufferOutputStream()
    parquet.write_table(table, buffer, compression="zstd")
    content = buffer.getvalue().to_pybytes()
    with atomic_write(path) as handle:
        handle.write(content)
    return {"file": path.name, "bytes": len(content), "xxh3": xxhash.xxh3_64_hexdigest(content)}
