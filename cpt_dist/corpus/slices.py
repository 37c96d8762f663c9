"""Pieces of a source's raw files that can be read alone, and their grouping into blocks of about equal size.

Where a large file is cut depends on the file alone, never on how many processes read it: plain JSONL at the lines that
begin in a range of bytes, Parquet between row groups. Compressed files can't be cut. What is read is a `Record`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cpt_dist.corpus.inputs import InputFile
from cpt_dist.corpus.read import Record, TextField, read_jsonl_range, read_records, read_row_groups


@dataclass(frozen=True)
class Slice:
    """A raw file, or a part of it that begins and ends between two records."""

    item: InputFile
    num_bytes: int
    """About how many bytes of the file it takes."""
    start_byte: int | None = None
    """Plain JSONL: the lines that begin in bytes [start_byte, stop_byte)."""
    stop_byte: int | None = None
    row_groups: tuple[int, ...] = ()
    """Parquet: these row groups."""
    first_row: int = 0
    """Parquet: rows of the file before them."""

    @property
    def numbers_from_start(self) -> bool:
        """Whether records are numbered within the file; else from the slice's first line on."""
        return not self.start_byte


@dataclass(frozen=True)
class Block:
    """What is read as one piece: consecutive slices; one that is a later part of its file stands alone."""

    slices: tuple[Slice, ...]

    @property
    def num_bytes(self) -> int:
        """About how many raw bytes it has."""
        return sum(one.num_bytes for one in self.slices)

    @property
    def continues(self) -> Path | None:
        """The file whose earlier lines are in the blocks before this one; None where it begins with its files."""
        first = self.slices[0]
        return None if first.numbers_from_start else first.item.path


def plan_blocks(inputs: Sequence[InputFile], block_bytes: int) -> list[Block]:
    """The blocks of a source, in the order of its inputs; every record is in exactly one."""
    blocks: list[Block] = []
    group: list[Slice] = []

    def close() -> None:
        if group:
            blocks.append(Block(tuple(group)))
            group.clear()

    for item in inputs:
        slices = _slices(item, block_bytes)
        if len(slices) > 1:
            close()
            blocks.extend(Block((one,)) for one in slices)
            continue
        if group and sum(one.num_bytes for one in group) + slices[0].num_bytes > block_bytes:
            close()
        group.extend(slices)
    close()
    return blocks


def _slices(item: InputFile, block_bytes: int) -> list[Slice]:
    if item.url is not None:
        return [Slice(item, item.num_bytes)]
    size = item.path.stat().st_size if item.path.is_file() else block_bytes
    if size > block_bytes and item.format == "jsonl" and item.path.suffix.lower() == ".jsonl":
        starts = range(0, size, block_bytes)
        return [Slice(item, min(block_bytes, size - at), at, min(at + block_bytes, size)) for at in starts]
    if size > block_bytes and item.format == "parquet":
        return _row_group_slices(item, block_bytes)
    return [Slice(item, size)]


def _row_group_slices(item: InputFile, block_bytes: int) -> list[Slice]:
    from pyarrow import parquet

    metadata = parquet.read_metadata(item.path)
    slices: list[Slice] = []
    groups: list[int] = []
    first_row = row = size = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        if groups and size + group.total_byte_size > block_bytes:
            slices.append(Slice(item, size, row_groups=tuple(groups), first_row=first_row))
            groups, size, first_row = [], 0, row
        groups.append(number)
        size += group.total_byte_size
        row += group.num_rows
    slices.append(Slice(item, size, row_groups=tuple(groups), first_row=first_row))
    return slices


def read_slice(part: Slice, text_field: TextField, policy: str, others: Sequence[str] = ()) -> Iterator[Record]:
    """The records of a slice; those of a later part of a JSONL file are numbered from the part's own first line.

    Raises what `read_records` raises.
    """
    if part.start_byte is not None:
        assert part.stop_byte is not None
        span = part.start_byte, part.stop_byte
        yield from read_jsonl_range(part.item.path, text_field, policy, others, span)
    elif part.row_groups:
        rows = read_row_groups(part.item.path, text_field, policy, others, part.row_groups)
        yield from (replace(record, index=record.index + part.first_row) for record in rows)
    else:
        yield from read_records(part.item, text_field, policy, others=others)
