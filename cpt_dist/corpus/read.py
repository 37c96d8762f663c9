"""Raw records from JSONL (plain, gzip, zstd), text, Parquet and folders saved by `datasets`.

A record that has no usable text is yielded too, with the reason, so that the caller can account for every record.
Nothing is normalised or judged here. Memory is bounded by the largest record, or by a Parquet row group.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zstandard

from cpt_dist.corpus.inputs import InputFile
from cpt_dist.errors import UserError, nearest

if TYPE_CHECKING:
    import pyarrow

READ_BYTES = 1 << 20
BATCH_ROWS = 256
INVALID_UTF8, INVALID_JSON, NO_TEXT = "invalid_utf8", "invalid_json", "no_text_field"
LINES_END = "lines_end"
"""No record: what ends a range of lines; its index is their number."""
Fields = str | tuple[str, ...]
"""The name of the field that holds the text, or the names of several of any type."""


@dataclass(frozen=True)
class AnyOf:
    """Fields of which a record may lack some; its text is what they say, joined by line ends."""

    names: tuple[str, ...]


TextField = Fields | AnyOf
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Record:
    """One raw record: where it is from and its text, or why it has none."""

    file: str
    index: int
    """Row, or line (blank ones included), counted from 0."""
    byte: int | None
    """Offset of a JSONL line or a text in the uncompressed file; None for tables."""
    text: str | None
    """Where several fields were asked for: a JSON object of them."""
    problem: str | None = None
    """Why `text` is None: invalid_utf8, invalid_json or no_text_field."""
    repaired: bool = False
    """Whether invalid UTF-8 in `text` was replaced by U+FFFD."""
    values: dict[str, Any] = field(default_factory=dict)
    """What the record has under the other fields that were asked for; a field that it lacks is left out."""


def _damaged(path: Path, error: object) -> UserError:
    return UserError(f"'{path}' is damaged or cut off ({error}); fetch it again")


def _zstd_blocks(path: Path) -> Iterator[bytes]:
    # zstandard's own stream reader ends silently where a file is cut off, and by default after its first frame.
    with open(path, "rb") as handle:
        frame = None
        while block := handle.read(READ_BYTES):
            while block:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                yield frame.decompress(block)
                block = frame.unused_data if frame.eof else b""
                frame = None if frame.eof else frame
    if frame is not None:
        raise EOFError("the last frame has no end")


def _blocks(path: Path) -> Iterator[bytes]:
    """The uncompressed content of a file in blocks of about READ_BYTES."""
    name = path.name.lower()
    try:
        if name.endswith(".zst"):
            yield from _zstd_blocks(path)
        else:
            with gzip.open(path, "rb") if name.endswith(".gz") else open(path, "rb") as handle:
                while block := handle.read(READ_BYTES):
                    yield block
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise _damaged(path, error) from error
    except OSError as error:
        raise UserError(f"'{path}' cannot be read ({error.strerror}); check its permissions") from error


def check_whole(path: Path) -> None:
    """Read a file through; UserError where it can't be read or, if it's compressed, is damaged or cut off."""
    for _ in _blocks(path):
        pass


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(byte offset, line without its LF) of every line; a line that spans blocks is joined once."""
    parts: list[bytes] = []
    offset = 0
    for block in _blocks(path):
        first, *rest = block.split(b"\n")
        parts.append(first)
        for part in rest:
            line = b"".join(parts)
            yield offset, line
            offset += len(line) + 1
            parts = [part]
    if line := b"".join(parts):
        yield offset, line


def _decode(raw: bytes, policy: str) -> tuple[str | None, bool]:
    try:
        return raw.decode("utf-8"), False
    except UnicodeDecodeError:
        return (raw.decode("utf-8", errors="replace"), True) if policy == "replace" else (None, False)


def _as_json(value: Any, names: tuple[str, ...]) -> str | None:
    """The named fields of a record as a JSON object; None where one is missing or null."""
    if not isinstance(value, dict) or any(value.get(name) is None for name in names):
        return None
    return json.dumps({name: value[name] for name in names}, ensure_ascii=False, default=str)


def _strings(value: Any) -> Iterator[str]:
    """The texts in a value, in their order: itself, or those in a list or an object."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


def _joined(value: Any, names: Sequence[str]) -> str | None:
    """What the named fields of a record say; None where they say nothing."""
    if not isinstance(value, dict):
        return None
    return "\n".join(text for name in names for text in _strings(value.get(name))) or None


def _text_of(value: Any, text_field: TextField, policy: str) -> tuple[str | None, str | None, bool]:
    """(text, problem, repaired) of a decoded JSON value."""
    if isinstance(text_field, tuple):
        text = _as_json(value, text_field)
    elif isinstance(text_field, AnyOf):
        text = _joined(value, text_field.names)
    else:
        text = value.get(text_field) if isinstance(value, dict) else None
    if not isinstance(text, str):
        return None, NO_TEXT, False
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # JSON can escape half a surrogate pair, which no UTF-8 can hold
        if policy == "drop":
            return None, INVALID_UTF8, False
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"), None, True
    return text, None, False


def _read_jsonl(path: Path, text_field: TextField, policy: str, start: int, others: Sequence[str]) -> Iterator[Record]:
    for index, (offset, line) in enumerate(_lines(path)):
        if index >= start and (record := _json_record(path, index, offset, line, text_field, policy, others)):
            yield record


def _json_record(
    path: Path, index: int, offset: int, line: bytes, text_field: TextField, policy: str, others: Sequence[str]
) -> Record | None:
    """The record of a line, None for a blank one."""
    raw = line.removeprefix(_BOM) if offset == 0 else line
    if not raw.strip():
        return None
    decoded, repaired = _decode(raw, policy)
    if decoded is None:
        return Record(str(path), index, offset, None, INVALID_UTF8)
    try:
        value = json.loads(decoded)
    except (ValueError, RecursionError):  # ValueError: also an integer of more than 4,300 digits
        return Record(str(path), index, offset, None, INVALID_JSON)
    text, problem, half = _text_of(value, text_field, policy)
    values = {name: value[name] for name in others if name in value} if text is not None else {}
    return Record(str(path), index, offset, text, problem, text is not None and (repaired or half), values)


def read_jsonl_range(
    path: Path, text_field: TextField, policy: str, others: Sequence[str], span: tuple[int, int]
) -> Iterator[Record]:
    """The records of a plain JSONL file's lines that begin in bytes [start, stop), numbered from the first of them.

    The last one is none: its problem is `LINES_END` and its index the number of lines, blank ones included. Raises
    UserError where the file can't be read.
    """
    start, stop = span
    try:
        with open(path, "rb") as handle:
            if start:
                handle.seek(start - 1)
                handle.readline()  # the rest of a line that begins before, or the LF of the one that ends there
            index, offset = 0, handle.tell()
            while offset < stop and (line := handle.readline()):
                record = _json_record(path, index, offset, line.removesuffix(b"\n"), text_field, policy, others)
                index, offset = index + 1, offset + len(line)
                if record:
                    yield record
            yield Record(str(path), index, offset, None, LINES_END)
    except OSError as error:
        raise UserError(f"'{path}' cannot be read ({error.strerror}); check its permissions") from error


def _read_text(path: Path, text_field: TextField, policy: str, start: int, others: Sequence[str]) -> Iterator[Record]:
    if start == 0:
        text, repaired = _decode(b"".join(_blocks(path)).removeprefix(_BOM), policy)
        yield Record(str(path), 0, 0, text, None if text is not None else INVALID_UTF8, repaired)


def _said_column(
    table: pyarrow.RecordBatch | pyarrow.Table, names: Sequence[str], say: Callable[[Any], str | None]
) -> list[bytes | None]:
    """What `say` makes of each row's fields; a byte that is no UTF-8 stands for a row that holds such."""
    chosen = table.select(list(names))
    column: list[bytes | None] = []
    for row in range(chosen.num_rows):
        try:
            text = say(chosen.slice(row, 1).to_pylist()[0])
            column.append(None if text is None else text.encode("utf-8"))
        except UnicodeDecodeError:
            column.append(b"\xff")
    return column


def _text_column(path: Path, table: pyarrow.RecordBatch | pyarrow.Table, text_field: TextField) -> list[bytes | None]:
    """The text column as bytes: Arrow doesn't check that its strings are UTF-8."""
    import pyarrow as pa

    if isinstance(text_field, tuple):
        return _said_column(table, text_field, lambda row: _as_json(row, text_field))
    if isinstance(text_field, AnyOf):
        known = [name for name in text_field.names if name in table.schema.names]
        return _said_column(table, known, lambda row: _joined(row, text_field.names))
    column = table.column(text_field)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    try:
        return column.cast(pa.large_binary()).to_pylist()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UserError(f"'{path}': column '{text_field}' holds {column.type}, not text; set text_field") from error


def _read_table(
    path: Path,
    batches: Iterator[pyarrow.RecordBatch | pyarrow.Table],
    text_field: TextField,
    policy: str,
    start: int,
    others: Sequence[str],
) -> Iterator[Record]:
    index = 0
    for batch in batches:
        skip = min(max(start - index, 0), batch.num_rows)
        rest = batch.slice(skip)
        columns = {name: rest.column(name).to_pylist() for name in others if name in rest.schema.names}
        for place, raw in enumerate(_text_column(path, rest, text_field)):
            row = index + skip + place
            if raw is None:
                yield Record(str(path), row, None, None, NO_TEXT)
            else:
                # What is left of a JSON object with a bad byte in it would be no record.
                text, repaired = _decode(raw, policy if isinstance(text_field, str) else "drop")
                values = {name: column[place] for name, column in columns.items()}
                problem = None if text is not None else INVALID_UTF8
                yield Record(str(path), row, None, text, problem, repaired, values)
        index += batch.num_rows


def _columns(path: Path, columns: list[str], text_field: TextField) -> list[str]:
    """The names of the columns to read; UserError where one isn't in the table."""
    if isinstance(text_field, AnyOf):
        wanted = [name for name in text_field.names if name in columns]
        if not wanted:
            raise UserError(f"'{path}' has none of the columns {', '.join(text_field.names)}; it has {columns}")
        return wanted
    if isinstance(text_field, tuple):
        wanted, key = list(text_field), "chat_field, or prompt_field and completion_field"
    else:
        wanted, key = [text_field], "text_field"
    problems = [
        f"'{path}' has no column '{name}'; {nearest(name, columns)} (set {key})"
        for name in wanted
        if name not in columns
    ]
    if problems:
        raise UserError(problems)
    return wanted


def _read_parquet(
    path: Path,
    text_field: TextField,
    policy: str,
    start: int,
    others: Sequence[str],
    row_groups: Sequence[int] | None = None,
) -> Iterator[Record]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            columns = _columns(path, file.schema_arrow.names, text_field)
            present = [name for name in others if name in file.schema_arrow.names]
            names = sorted({*columns, *present})
            batches = file.iter_batches(batch_size=BATCH_ROWS, row_groups=row_groups, columns=names)
            yield from _read_table(path, batches, text_field, policy, start, others)
    except (pa.ArrowInvalid, OSError) as error:
        raise _damaged(path, str(error).splitlines()[0]) from error


def read_row_groups(
    path: Path, text_field: TextField, policy: str, others: Sequence[str], row_groups: Sequence[int]
) -> Iterator[Record]:
    """The records of some row groups of a Parquet file, numbered from the first of them."""
    yield from _read_parquet(path, text_field, policy, 0, others, row_groups)


def _read_dataset(
    path: Path, text_field: TextField, policy: str, start: int, others: Sequence[str]
) -> Iterator[Record]:
    import pyarrow as pa
    from datasets import load_from_disk

    try:
        table = load_from_disk(str(path)).with_format("arrow")
        columns = _columns(path, table.column_names, text_field)
        present = [name for name in others if name in table.column_names]
        batches = table.select_columns(sorted({*columns, *present})).iter(batch_size=BATCH_ROWS)
        yield from _read_table(path, batches, text_field, policy, start, others)
    except (pa.ArrowInvalid, OSError, json.JSONDecodeError) as error:
        raise _damaged(path, str(error).splitlines()[0]) from error


_READERS = {"jsonl": _read_jsonl, "text": _read_text, "parquet": _read_parquet, "dataset": _read_dataset}


def read_records(
    item: InputFile, text_field: TextField = "text", policy: str = "drop", start: int = 0, others: Sequence[str] = ()
) -> Iterator[Record]:
    """The records of one input from index `start` on, in order, with their values under the fields `others`.

    With a tuple of fields a record's text is a JSON object of them. `policy` (drop or replace) says what becomes of
    invalid UTF-8. Blank lines of JSONL are no records. Raises UserError for a damaged file, and for a table that has
    no column `text_field` or no text in it.
    """
    if item.format not in _READERS:
        from cpt_dist.corpus.web_formats import READERS

        return READERS[item.format](item.path, policy, start)
    return _READERS[item.format](item.path, text_field, policy, start, others)
