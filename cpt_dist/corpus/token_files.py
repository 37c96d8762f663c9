"""Token data of other programs, read as they wrote it: Megatron-core, datatrove and MosaicML streaming (MDS).

The formats are implemented from their public definitions (Megatron-LM `core/datasets/indexed_dataset.py`, datatrove
`pipeline/tokens/tokenizer.py`, streaming `base/format/mds/`); none of those packages is imported. What a document's
tokens mean, and whether they fit a tokenizer, is not known here.
"""

from __future__ import annotations

import glob
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from cpt_dist.corpus.inputs import PARTNERS, InputFile
from cpt_dist.errors import UserError

ENDINGS = {"megatron": ".idx", "datatrove": ".ds", "mds": "index.json"}
_MEGATRON_MAGIC = b"MMIDIDX\x00\x00"
_MEGATRON_DTYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_MDS_DTYPES = {8: "<u1", 9: "<i1", 16: "<u2", 17: "<i2", 32: "<u4", 33: "<i4", 64: "<u8", 65: "<i8"}
_MDS_NAMES = {np.dtype(code).name: code for code in _MDS_DTYPES.values()}


@dataclass(frozen=True)
class TokenDocument:
    """A document as its file has it: `tokens` is an integer array [tokens] of any width."""

    file: str
    index: int
    """Its number within the file."""
    byte: int | None
    """Offset of its first token in the file; None in a compressed one."""
    tokens: np.ndarray


def find_token_files(patterns: Sequence[str], import_format: str, key: str) -> list[InputFile]:
    """The token data that files, folders and globs name: sorted, each once.

    A folder is searched to the bottom. Raises UserError, with all problems and prefixed by `key`, for a pattern that
    names none and for a file without its partner.
    """
    problems: list[str] = []
    found: set[Path] = set()
    ending = ENDINGS[import_format]
    for pattern in patterns:
        path = Path(pattern)
        matches = [path] if path.exists() else [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
        mine: list[Path] = []
        for match in matches:
            mine += sorted(match.rglob(f"*{ending}")) if match.is_dir() else [match] * match.name.endswith(ending)
        if not mine:
            problems.append(f"{key}: '{pattern}' names no {import_format} data ({ending}); correct the path")
        found.update(mine)
    inputs = []
    for path in sorted(found):
        if import_format in PARTNERS:
            partner = PARTNERS[import_format](path)
            if not partner.is_file():
                problems.append(f"{key}: '{path}' lacks '{partner.name}' beside it; fetch it again")
            inputs.append(InputFile(path, import_format))
        elif not any(parent / ending in found for parent in path.parents[1:]):  # else it is part of a merged index
            inputs.append(InputFile(path.parent, import_format))
    if problems:
        raise UserError(problems)
    return inputs


def read_token_documents(item: InputFile, column: str, start: int = 0) -> Iterator[TokenDocument]:
    """The documents of an input from number `start` on, numbered through it; `column` is used by MDS alone.

    Raises UserError, by name, for a file that is damaged, truncated or of a version or type that isn't known.
    """
    readers: dict[str, Callable[[Path, str, int], Iterator[TokenDocument]]] = {
        "megatron": _megatron,
        "datatrove": _datatrove,
        "mds": _mds,
    }
    try:
        yield from readers[item.format](item.path, column, start)
    except OSError as error:
        raise UserError(f"'{item.path}' cannot be read ({error}); fetch it again") from error


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"'{path}' {what}; fetch it again")


def _memory(path: Path, dtype: str) -> np.ndarray:
    """The file as an array; an empty file can't be mapped."""
    return np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.empty(0, dtype=dtype)


def _megatron(path: Path, _column: str, start: int) -> Iterator[TokenDocument]:
    """.idx: magic, version u64, dtype code u8, number of sequences u64 and of document bounds u64, sequence lengths
    i32, their byte offsets in .bin i64, document bounds i64 (in sequences)."""
    raw = path.read_bytes()
    if raw[:9] != _MEGATRON_MAGIC:
        raise _damaged(path, "does not begin with MMIDIDX, so it is no Megatron index")
    if len(raw) < 34:
        raise _damaged(path, f"has {len(raw)} bytes, fewer than its header")
    version, code = int.from_bytes(raw[9:17], "little"), raw[17]
    if version != 1 or code not in _MEGATRON_DTYPES:
        raise UserError(f"'{path}' has version {version} and dtype code {code}; version 1 and integer tokens are read")
    num_sequences, num_bounds = (int.from_bytes(raw[at : at + 8], "little") for at in (18, 26))
    if len(raw) < 34 + 12 * num_sequences + 8 * num_bounds:
        raise _damaged(path, f"has {len(raw)} bytes, too few for {num_sequences} sequences")
    lengths = np.frombuffer(raw, "<i4", num_sequences, 34)
    pointers = np.frombuffer(raw, "<i8", num_sequences, 34 + 4 * num_sequences)
    bounds = np.frombuffer(raw, "<i8", num_bounds, 34 + 12 * num_sequences)
    tokens_path = PARTNERS["megatron"](path)
    tokens = _memory(tokens_path, _MEGATRON_DTYPES[code])
    width = tokens.dtype.itemsize
    if num_sequences and int((pointers + lengths.astype(np.int64) * width).max()) > tokens.size * width:
        raise _damaged(tokens_path, f"has {tokens.size * width} bytes, fewer than its index says")
    for index in range(start, num_bounds - 1):
        sequences = range(int(bounds[index]), int(bounds[index + 1]))
        parts = [tokens[(first := int(pointers[s]) // width) : first + int(lengths[s])] for s in sequences]
        byte = int(pointers[sequences[0]]) if sequences else None
        yield TokenDocument(str(tokens_path), index, byte, np.concatenate([*parts, tokens[:0]]))


def _datatrove(path: Path, _column: str, start: int) -> Iterator[TokenDocument]:
    """.ds: tokens alone, 2 or 4 bytes each; .ds.index: the end of each document in tokens, u64."""
    index_path = PARTNERS["datatrove"](path)
    if index_path.stat().st_size % 8:
        raise _damaged(index_path, f"has {index_path.stat().st_size} bytes, no multiple of 8")
    ends = _memory(index_path, "<u8")
    num_tokens, num_bytes = int(ends[-1]) if ends.size else 0, path.stat().st_size
    dtypes = {2 * num_tokens: "<u2", 4 * num_tokens: "<u4"}
    if num_bytes not in dtypes:
        raise _damaged(path, f"has {num_bytes} bytes, but its index says {num_tokens} tokens of 2 or 4 bytes")
    tokens = _memory(path, dtypes[num_bytes])
    for index in range(start, ends.size):
        first = int(ends[index - 1]) if index else 0
        yield TokenDocument(str(path), index, first * tokens.dtype.itemsize, np.array(tokens[first : int(ends[index])]))


def _mds(path: Path, column: str, start: int) -> Iterator[TokenDocument]:
    """index.json names the shards; a shard is u32 n, u32 offsets[n + 1], its settings, samples; a sample is the u32
    sizes of its columns of variable size, then the columns."""
    try:
        shards = json.loads((path / "index.json").read_text(encoding="utf-8"))["shards"]
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path / "index.json", f"is no index of MDS shards ({error})") from error
    before = 0
    for shard in shards:
        if start < before + shard["samples"]:
            yield from _mds_shard(path, shard, column, before, max(0, start - before))
        before += shard["samples"]


def _mds_shard(folder: Path, shard: dict[str, Any], column: str, before: int, start: int) -> Iterator[TokenDocument]:
    names, sizes = shard["column_names"], shard["column_sizes"]
    if shard["format"] != "mds" or column not in names:
        raise UserError(
            f"'{folder}' has {shard['format']} shards with columns {', '.join(names)} but no '{column}'; "
            "set import_column to the column of tokens"
        )
    raw, path, is_plain = _mds_bytes(folder, shard)
    num_samples = shard["samples"]
    offsets = np.frombuffer(raw, "<u4", num_samples + 1, 4) if len(raw) >= 8 + 4 * num_samples else np.zeros(1)
    if int.from_bytes(raw[:4], "little") != num_samples or int(offsets[-1]) != len(raw):
        raise _damaged(path, f"does not hold the {num_samples} samples that its index says")
    place, variable = names.index(column), [number for number, size in enumerate(sizes) if size is None]
    for number in range(start, num_samples):
        at = int(offsets[number])
        own = list(sizes)
        for which, size in zip(variable, np.frombuffer(raw, "<u4", len(variable), at).tolist(), strict=True):
            own[which] = size
        first = at + 4 * len(variable) + sum(own[:place])
        tokens, skipped = _mds_array(raw[first : first + own[place]], shard["column_encodings"][place], path)
        yield TokenDocument(str(path), before + number, first + skipped if is_plain else None, tokens)


def _mds_bytes(folder: Path, shard: dict[str, Any]) -> tuple[bytes, Path, bool]:
    """A shard's content, where it is from, and whether that file is not compressed."""
    plain = folder / shard["raw_data"]["basename"]
    if plain.is_file():
        content = plain.read_bytes()
        if len(content) != shard["raw_data"]["bytes"]:
            raise _damaged(plain, f"has {len(content)} bytes but its index says {shard['raw_data']['bytes']}")
        return content, plain, True
    compression = str(shard.get("compression"))
    if not shard.get("zip_data") or not compression.startswith("zstd"):
        raise UserError(f"'{plain}' is missing (compression: {compression}); plain and zstd shards are read")
    packed = folder / shard["zip_data"]["basename"]
    try:
        with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(packed.read_bytes())) as reader:
            return reader.read(), packed, False
    except zstandard.ZstdError as error:
        raise _damaged(packed, f"is no whole zstd file ({error})") from error


def _mds_array(raw: bytes, encoding: str, path: Path) -> tuple[np.ndarray, int]:
    """A column's values, flattened, and the bytes before them; `bytes` is taken as int64, as LLM Foundry writes it."""
    kind, *parts = encoding.split(":")
    at = 0
    if kind == "bytes":
        code: str | None = "<i8"
    elif kind == "ndarray" and parts:
        code = _MDS_NAMES.get(parts[0])
    elif kind == "ndarray":
        code, at = _MDS_DTYPES.get(raw[0]), 1
    else:
        code = None
    if code is None:
        raise UserError(f"'{path}' has tokens of encoding '{encoding}'; arrays of integers and bytes are read")
    count = None
    if kind == "ndarray" and len(parts) < 2:
        num_dimensions, width = raw[at] >> 2, 1 << (raw[at] & 3)
        shape = np.frombuffer(raw, f"<u{width}", num_dimensions, at + 1)
        count, at = math.prod(shape.tolist()), at + 1 + num_dimensions * width
    values = raw[at:]
    if len(values) % np.dtype(code).itemsize or count not in (None, len(values) // np.dtype(code).itemsize):
        raise _damaged(path, f"holds a sample of {len(values)} bytes that is no array of {np.dtype(code).name}")
    return np.frombuffer(values, code), at
