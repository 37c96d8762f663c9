"""All that can be wrong with one file of a shard set, found without stopping at the first damage.

`verify.py` asks it for each file. Reading for training refuses a file at its first damaged block (`shard_file.py`);
here the damage is also placed: which of the header, its padding, the tensors or the end it is in. Nothing is mended.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import xxhash

from cpt_dist.data.cuts import LINES, PARAGRAPHS
from cpt_dist.data.remote import LastingError, PassingError, Persistence, RemoteFolder
from cpt_dist.data.shard_cache import file_entry
from cpt_dist.errors import UserError

_CHUNK_BYTES = 8 << 20
_SHOWN_BLOCKS = 5
_WIDTHS = {"doc_offsets": 8, "doc_id": 16, "doc_bytes": 4}

Sections = dict[str, tuple[int, int]]
"""Name -> first byte and one past the last, in the order in which they lie in the file."""


@contextmanager
def local_copy(
    folder: Path | RemoteFolder, entry: dict[str, Any], listing: dict[str, int | None] | None
) -> Iterator[Path | None]:
    """A file of a manifest, read in place; from behind a URL what is there of it, whole or not. None: it isn't there.

    `listing` is what the remote folder lists, where it does. Raises UserError where the server doesn't give it.
    """
    name = entry["file"]
    if isinstance(folder, Path):
        yield folder / name if (folder / name).is_file() else None
        return
    with tempfile.NamedTemporaryFile(prefix="cpt_dist-verify-") as handle:
        there = listing is None or name in listing
        if there:
            there = _download(folder / name, file_entry(entry), handle, listing[name] if listing else None)
            handle.flush()
        yield Path(handle.name) if there else None


def _download(remote: RemoteFolder, entry: dict[str, Any], handle: IO[bytes], size: int | None) -> bool:
    """Write the file as the server has it, up to a byte more than it should have; False where it doesn't exist.

    A part that came damaged or short is asked for once more: damage of the way isn't damage of the file.
    """
    block_bytes = entry["block_bytes"]
    chunk_bytes = max(block_bytes, _CHUNK_BYTES // block_bytes * block_bytes)
    at, end, asked_again = 0, entry["bytes"] + 1 if size is None else min(size, entry["bytes"] + 1), False
    attempts = Persistence(remote.settings)
    while at < end:
        stop = min(at + chunk_bytes, end)
        try:
            content = remote.read(at, stop)
        except LastingError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return False
            if at:  # servers refuse a range that begins where the file ends
                return True
            raise UserError(f"'{remote}' cannot be fetched: {error}") from error
        except PassingError as error:
            if not attempts.again():
                raise UserError(f"'{remote}' cannot be fetched: {error} ({attempts.count} attempts)") from error
            continue
        if len(content) > stop - at:  # a server that knows no ranges
            content = content[at:stop]
        if not asked_again and not _agrees(content, at, min(stop, entry["bytes"]), entry):
            asked_again = True
            continue
        handle.write(content)
        if len(content) < stop - at:
            return True
        at, asked_again, attempts = stop, False, Persistence(remote.settings)
    return True


def _agrees(content: bytes, at: int, stop: int, entry: dict[str, Any]) -> bool:
    size = entry["block_bytes"]
    return len(content) == stop - at and all(
        xxhash.xxh3_64_hexdigest(content[block * size - at : min((block + 1) * size, stop) - at])
        == entry["blocks"][block]
        for block in range(at // size, -(-stop // size))
    )


def byte_problems(path: Path | None, entry: dict[str, Any], dtype: str | None) -> list[str]:
    """What is wrong with a file's size and blocks: a clause for each damaged section, to go behind the file's name.

    `dtype` is the manifest's type of tokens for a shard, None for a file without sections.
    """
    entry = file_entry(entry)
    if path is None:
        return ["does not exist; fetch it again"]
    size = path.stat().st_size
    content = np.memmap(path, np.uint8, "r") if size else np.zeros(0, np.uint8)
    sections, evident = _sections(content, entry, dtype) if dtype else ({}, set())
    found = []
    if size != entry["bytes"]:
        found.append(f"has {size} bytes but its manifest says {entry['bytes']}{_where_it_ends(size, entry, sections)}")
    wrong: dict[tuple[str, ...], list[tuple[int, str]]] = {}
    block_bytes = entry["block_bytes"]
    for block, expected in enumerate(entry["blocks"]):
        first, last = block * block_bytes, min((block + 1) * block_bytes, entry["bytes"])
        if last > size:
            break  # cut off here, which the size has said
        checksum = xxhash.xxh3_64_hexdigest(content[first:last].data)
        if checksum != expected:
            wrong.setdefault(_suspects(first, last, sections, evident), []).append((block, checksum))
    for names, blocks in wrong.items():
        found.append(f"{', '.join(names) + ': ' if names else ''}{_checksums(blocks, entry)}")
    return [f"{what}; fetch it again" for what in found]


def _checksums(blocks: list[tuple[int, str]], entry: dict[str, Any]) -> str:
    block, checksum = blocks[0]
    one = f"block {block} has checksum {checksum} but its manifest says {entry['blocks'][block]}"
    if len(blocks) == 1:
        return one
    numbers = [str(number) for number, _ in blocks[:_SHOWN_BLOCKS]] + ["…"] * (len(blocks) > _SHOWN_BLOCKS)
    return f"{len(blocks)} blocks ({', '.join(numbers)}) have wrong checksums: {one}"


def _where_it_ends(size: int, entry: dict[str, Any], sections: Sections) -> str:
    if size > entry["bytes"]:
        return f": {size - entry['bytes']} too many at its end"
    cut = [name for name, (first, last) in sections.items() if first < size < last]
    lost = [name for name, (first, last) in sections.items() if first >= size and last > first]
    within = f": it ends within {cut[0]}" if cut else f": it ends before {lost[0]}" if lost else ""
    lacks = lost if cut else lost[1:]
    return within + (f" and lacks {', '.join(lacks)}" if lacks else "")


def _suspects(first: int, last: int, sections: Sections, evident: set[str]) -> tuple[str, ...]:
    """The sections in the bytes [first, last): those that are evidently damaged, or else all of them."""
    names = [name for name, (start, stop) in sections.items() if start < last and stop > first]
    return tuple(name for name in names if name in evident) or tuple(names)


def _sections(content: np.ndarray, entry: dict[str, Any], dtype: str) -> tuple[Sections, set[str]]:
    """The sections of a shard, and those that are damaged by their own evidence, whatever the checksums say."""
    start = 8 + int.from_bytes(content[:8].tobytes(), "little")
    unknown: Sections = {"header": (0, min(entry["bytes"], entry["block_bytes"]))}
    try:
        text = content[8 : min(start, entry["bytes"])].tobytes().decode()
        header, used = json.JSONDecoder().raw_decode(text)
        tensors = {name: tensor["data_offsets"] for name, tensor in header.items() if name != "__metadata__"}
        spans = sorted((start + first, start + last, name) for name, (first, last) in tensors.items())
    except (ValueError, KeyError, TypeError, AttributeError):
        return unknown, {"header"}
    used = len(text[:used].encode())
    sections: Sections = {"header": (0, 8 + used), "padding": (8 + used, start)}
    sections |= {name: (first, last) for first, last, name in spans}
    documents = entry["documents"]
    lengths = {name: width * documents for name, width in _WIDTHS.items()} | {
        "doc_offsets": 8 * (documents + 1),
        "tokens": np.dtype(dtype).itemsize * entry["tokens"],
    }
    ends = [start, *(last for _, last, _ in spans)]
    fits = ends[:-1] == [first for first, _, _ in spans] and ends[-1] == entry["bytes"]
    if not fits or any(
        sections.get(name, (0, -1))[1] - sections.get(name, (0, 0))[0] != n for name, n in lengths.items()
    ):
        return unknown, {"header"}
    evident = set()
    if text[used:].strip(" "):
        evident.add("padding")
    first, last = sections["doc_offsets"]
    if len(content) >= last and not _are_boundaries(content[first:last].view(np.uint64), entry["tokens"]):
        evident.add("doc_offsets")
    return sections, evident


def _are_boundaries(offsets: np.ndarray, num_tokens: int) -> bool:
    return bool(offsets[0] == 0 and offsets[-1] == num_tokens and np.all(offsets[:-1] <= offsets[1:]))


def content_problems(tensors: dict[str, np.ndarray], entry: dict[str, Any], vocab_size: int) -> list[str]:
    """What checksums can't say of a shard: whether its tensors hold what a reader of them relies on."""
    found = []
    if not _are_boundaries(tensors["doc_offsets"], entry["tokens"]):
        found.append(f"doc_offsets don't rise from 0 to its {entry['tokens']} tokens; prepare it again")
    largest = int(tensors["tokens"].max(initial=0))
    if largest >= vocab_size:
        found.append(f"tokens has {largest}, beyond its vocabulary of {vocab_size}; prepare it again")
    for name in (PARAGRAPHS, LINES):
        places = tensors.get(name, np.empty(0, dtype=np.uint64)).astype(np.int64)
        within = places.size == 0 or (places[0] > 0 and places[-1] < entry["tokens"])
        if not within or np.any(np.diff(places) <= 0):
            found.append(f"{name} don't rise within its {entry['tokens']} tokens; prepare it again")
    return found
