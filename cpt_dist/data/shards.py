"""Token shards: the files of a source, opened for reading and checked against their manifest.

A shard is a safetensors file; document boundaries are recorded in it and never inferred from a separator token.
Nothing is written here (`shard_writer.py` does that). That block checksums are verified on first read, not only
when a file is fetched, is what MosaicML streaming leaves off by default and pays for with errors far from the cause.
"""

from __future__ import annotations

import heapq
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
import zstandard

from cpt_dist.errors import UserError
from cpt_dist.files import file_checksum, fingerprint

FORMAT = "cpt_dist.shards/1"
MANIFEST = "manifest.json"
DTYPES = {"U8": np.uint8, "U16": np.uint16, "U32": np.uint32, "U64": np.uint64}


def tokenizer_fingerprint(folder: str | Path) -> str:
    """xxh3-128 (hex) of the canonical JSON of `folder`/tokenizer.json without "padding" and "truncation".

    Those two are settings of a call that programs save along; they change no token. Raises UserError where the
    file is missing or no JSON object.
    """
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"'{path}' does not exist; give a folder of a fast tokenizer (data.tokenizer)")
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"'{path}' is no JSON ({error}); fetch it again") from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise UserError(f"'{path}' describes no tokenizer (it has no object 'model'); fetch it again")
    return fingerprint({key: value for key, value in content.items() if key not in ("padding", "truncation")})


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of a complete source; UserError where it is missing, unreadable, altered or of another format."""
    path = Path(folder) / MANIFEST
    name = path.parent.name
    remake = f"remove '{path.parent}' and run launch/prepare.py"
    if not path.is_file():
        raise UserError(f"source '{name}': '{path}' does not exist, so it is not complete; run launch/prepare.py")
    try:
        manifest = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"source '{name}': '{path}' is no JSON ({error}); {remake}") from error
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise UserError(f"source '{name}': '{path}' has format {found!r}, but '{FORMAT}' is read; {remake}")
    content = fingerprint({key: value for key, value in manifest.items() if key != "fingerprint"})
    if content != manifest.get("fingerprint"):
        said = manifest.get("fingerprint")
        raise UserError(f"source '{name}': '{path}' was altered: it says {said}, its content gives {content}; {remake}")
    return manifest


@dataclass
class ShardFile:
    """One shard file and its entry in the manifest, mapped and checked when first touched.

    `sections` is name -> (dtype, first byte, one past the last byte); `verified` is bool [num_blocks].
    """

    path: Path
    entry: dict[str, Any]
    source: str
    memory: np.memmap | None = None
    sections: dict[str, tuple[Any, int, int]] = field(default_factory=dict)
    verified: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "entry": self.entry, "source": self.source}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A copy in another process maps the file and verifies it for itself.
        self.__dict__.update(state, memory=None, sections={}, verified=np.zeros(0, dtype=bool))

    def _refuse(self, what: str) -> UserError:
        return UserError(
            f"source '{self.source}': {self.path.name} {what}; fetch it again, "
            f"or remove '{self.path.parent}' and run launch/prepare.py"
        )

    def open(self) -> np.memmap:
        """Map the file and check its size, its first block and the layout that its header gives."""
        if self.memory is not None:
            return self.memory
        try:
            size = self.path.stat().st_size
            if size != self.entry["bytes"]:
                raise self._refuse(f"has {size} bytes but its manifest says {self.entry['bytes']}")
            memory = np.memmap(self.path, dtype=np.uint8, mode="r")
        except OSError as error:
            raise self._refuse(f"cannot be read ({error.strerror})") from error
        self.verified = np.zeros(len(self.entry["blocks"]), dtype=bool)
        self._verify(memory, 0, 1)
        header_bytes = int.from_bytes(memory[:8].tobytes(), "little")
        self._verify(memory, 0, 8 + header_bytes)
        header = json.loads(memory[8 : 8 + header_bytes].tobytes())
        self.sections = {}
        for name, tensor in header.items():
            if name != "__metadata__":
                first, last = (8 + header_bytes + at for at in tensor["data_offsets"])
                self.sections[name] = (DTYPES[tensor["dtype"]], first, last)
        self.memory = memory
        return memory

    def _verify(self, memory: np.memmap, first: int, last: int) -> None:
        """Compare the checksum of each block that overlaps bytes [first, last) and was not compared before."""
        size = self.entry["block_bytes"]
        for block in range(first // size, min(-(-last // size), len(self.verified))):
            if not self.verified[block]:
                content = memory[block * size : (block + 1) * size]
                found, expected = xxhash.xxh3_64_hexdigest(content.data), self.entry["blocks"][block]
                if found != expected:
                    raise self._refuse(f"block {block} has checksum {found} but its manifest says {expected}")
                self.verified[block] = True

    def verify_all(self) -> None:
        """Check every block now."""
        memory = self.open()
        self._verify(memory, 0, len(memory))

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Elements [start, stop) of a tensor, as a read-only view of the mapped file."""
        memory = self.open()
        dtype, first, _ = self.sections[name]
        width = np.dtype(dtype).itemsize
        self._verify(memory, first + start * width, first + stop * width)
        return np.asarray(memory[first + start * width : first + stop * width]).view(dtype)


class Source:
    """A complete, opened source. Copies in other processes (pickle) map and verify the files for themselves."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest
        self.name: str = manifest["source"]
        self.role: str = manifest["role"]
        self.fingerprint: str = manifest["fingerprint"]
        self.separator_id: int = manifest["tokenizer"]["separator_id"]
        self.shard_tokens: np.ndarray = np.array([entry["tokens"] for entry in manifest["shards"]], dtype=np.int64)
        """int64 [num_shards]: tokens in each shard."""
        self._shards = [ShardFile(folder / entry["file"], entry, self.name) for entry in manifest["shards"]]

    @classmethod
    def open(cls, folder: str | Path, tokenizer_fingerprint: str | None = None, verify: str = "read") -> Source:
        """Open the source in `folder`; verify="open" reads and checks every block now, "read" when first needed.

        The manifest, every file's size and every file's first block (with its header) are checked either way.
        Raises UserError, by name, for a source that is not complete, altered, truncated or made with another
        tokenizer than the one with `tokenizer_fingerprint`.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        made_with = manifest["tokenizer"]["fingerprint"]
        if tokenizer_fingerprint is not None and tokenizer_fingerprint != made_with:
            raise UserError(
                f"source '{manifest['source']}': its shards were made with tokenizer {made_with}, not "
                f"{tokenizer_fingerprint}; use that tokenizer, or another data.shards and run launch/prepare.py"
            )
        source = cls(folder, manifest)
        for shard in source._shards:
            if verify == "open":
                shard.verify_all()
            else:
                shard.open()
        return source

    @property
    def num_tokens(self) -> int:
        """Training tokens in all shards, separators included."""
        return int(self.manifest["tokens"])

    @property
    def num_documents(self) -> int:
        """Training documents in all shards."""
        return int(self.manifest["documents"])

    def tokens(self, shard: int, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop) of a shard, u16 or u32 as stored; a read-only view.

        Raises IndexError outside the shard, and UserError for a block whose checksum isn't the manifest's.
        """
        if not 0 <= start <= stop <= self.shard_tokens[shard]:
            raise IndexError(f"tokens {start}:{stop} of shard {shard}, which has {self.shard_tokens[shard]}")
        return self._shards[shard].read("tokens", start, stop)

    def doc_offsets(self, shard: int) -> np.ndarray:
        """uint64 [num_documents + 1]: document i has the tokens [offset[i], offset[i + 1])."""
        return self._shards[shard].read("doc_offsets", 0, self._shards[shard].entry["documents"] + 1)

    def doc_ids(self, shard: int) -> np.ndarray:
        """uint8 [num_documents, 16]: xxh3-128 of each document's normalised text."""
        return self._shards[shard].read("doc_id", 0, 16 * self._shards[shard].entry["documents"]).reshape(-1, 16)

    def loss_spans(self, shard: int) -> np.ndarray | None:
        """uint64 [num_spans, 2], rising: tokens [start, stop) of the shard that are to be predicted; None: all are."""
        file = self._shards[shard]
        file.open()
        if "loss_spans" not in file.sections:
            return None
        _, first, last = file.sections["loss_spans"]
        return file.read("loss_spans", 0, (last - first) // 8).reshape(-1, 2)

    def doc_bytes(self, shard: int) -> np.ndarray:
        """uint32 [num_documents]: UTF-8 bytes of each document's normalised text."""
        return self._shards[shard].read("doc_bytes", 0, self._shards[shard].entry["documents"])

    def documents(self, shard: int) -> np.ndarray | None:
        """None: all documents of the shard belong to the source (`packing.RowSource`)."""
        return None


@dataclass(frozen=True)
class HeldOutDocument:
    """A document kept for evaluation: the hex id of its normalised text, the text, and its source's name."""

    id: str
    text: str
    source: str


def _held_out_lines(path: Path) -> Iterator[HeldOutDocument]:
    with zstandard.open(path, "rb") as handle:
        for line in io.BufferedReader(handle):
            record = json.loads(line)
            yield HeldOutDocument(record["id"], record["text"], record["source"])


def read_held_out(folder: str | Path) -> Iterator[HeldOutDocument]:
    """The held-out documents of a complete source, ordered by id; each file is checked as a whole first.

    Raises UserError, by name, for a source that is not complete and for a file that is missing or altered.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    return merge_held_out(folder, manifest["source"], manifest["held_out"])


def merge_held_out(folder: Path, source: str, entries: list[dict[str, Any]]) -> Iterator[HeldOutDocument]:
    """The documents of the held-out files that manifest `entries` name, ordered by id, after a check of each file."""
    for entry in entries:
        path = folder / entry["file"]
        found = file_checksum(path) if path.is_file() else "none (no such file)"
        if found != entry["xxh3"]:
            raise UserError(
                f"source '{source}': {path.name} has checksum {found} but its manifest says {entry['xxh3']}; "
                f"fetch it again, or remove '{folder}' and run launch/prepare.py"
            )
    # Each file is sorted, so a merge gives the order of all while holding one document of each.
    return heapq.merge(*(_held_out_lines(folder / entry["file"]) for entry in entries), key=lambda d: d.id)


def recorded_ids(folder: Path, source: str, shards: list[dict[str, Any]], held_out: list[dict[str, Any]]) -> set[bytes]:
    """The ids (16 bytes each) of all documents in the shards and held-out files that manifest entries name."""
    ids: set[bytes] = set()
    for entry in shards:
        raw = ShardFile(folder / entry["file"], entry, source).read("doc_id", 0, 16 * entry["documents"]).tobytes()
        ids.update(raw[at : at + 16] for at in range(0, len(raw), 16))
    ids.update(bytes.fromhex(document.id) for document in merge_held_out(folder, source, held_out))
    return ids
