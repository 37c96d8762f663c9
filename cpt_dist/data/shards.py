"""Token shards: the files of a source, opened for reading and checked against their manifest.

A shard is a safetensors file; document boundaries are recorded in it and never inferred from a separator token.
Nothing is written here (`shard_writer.py` does that). The files may lie behind a URL (`remote.py`, `shard_cache.py`).
"""

from __future__ import annotations

import heapq
import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import zstandard

from cpt_dist.data.cuts import LINES, PARAGRAPHS
from cpt_dist.data.remote import RemoteFolder, as_folder
from cpt_dist.data.shard_cache import CachedFile
from cpt_dist.data.shard_file import RemoteShardFile, ShardFile, shard_file
from cpt_dist.errors import UserError
from cpt_dist.files import file_checksum, fingerprint

FORMAT = "cpt_dist.shards/1"
MANIFEST = "manifest.json"


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


def is_complete(folder: str | Path | RemoteFolder) -> bool:
    """Whether the folder has a manifest, which is written when everything else is there."""
    path = as_folder(folder) / MANIFEST
    return path.read_whole() is not None if isinstance(path, RemoteFolder) else path.is_file()


def read_manifest(folder: str | Path | RemoteFolder) -> dict[str, Any]:
    """The manifest of a complete source; UserError where it is missing, unreadable, altered or of another format."""
    folder = as_folder(folder)
    path, name = folder / MANIFEST, folder.name
    remake = f"remove '{folder}' and run launch/prepare.py"
    raw = path.read_whole() if isinstance(path, RemoteFolder) else path.read_bytes() if path.is_file() else None
    if raw is None:
        raise UserError(f"source '{name}': '{path}' does not exist, so it is not complete; run launch/prepare.py")
    try:
        manifest = json.loads(raw)
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


class Source:
    """A complete, opened source. Copies in other processes (pickle) map and verify the files for themselves."""

    def __init__(self, folder: Path | RemoteFolder, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.plan_folder: Path | None = _plan_folder(folder)
        self.manifest = manifest
        self.name: str = manifest["source"]
        self.role: str = manifest["role"]
        self.fingerprint: str = manifest["fingerprint"]
        self.separator_id: int = manifest["tokenizer"]["separator_id"]
        self.shard_tokens: np.ndarray = np.array([entry["tokens"] for entry in manifest["shards"]], dtype=np.int64)
        """int64 [num_shards]: tokens in each shard."""
        self._shards = [shard_file(folder, entry, self.name) for entry in manifest["shards"]]

    @classmethod
    def open(
        cls, folder: str | Path | RemoteFolder, tokenizer_fingerprint: str | None = None, verify: str = "read"
    ) -> Source:
        """Open the source in `folder`; verify="open" reads and checks every block now, "read" when first needed.

        The manifest, every file's size and every file's first block (with its header) are checked either way. Behind
        a URL (a RemoteFolder, or a string such as s3://bucket/folder for the default settings) nothing is fetched for
        that: sizes are taken from a listing where there is one.
        Raises UserError, by name, for a source that is not complete, altered, truncated or made with another
        tokenizer than the one with `tokenizer_fingerprint`.
        """
        folder = as_folder(folder)
        manifest = read_manifest(folder)
        made_with = manifest["tokenizer"]["fingerprint"]
        if tokenizer_fingerprint is not None and tokenizer_fingerprint != made_with:
            raise UserError(
                f"source '{manifest['source']}': its shards were made with tokenizer {made_with}, not "
                f"{tokenizer_fingerprint}; use that tokenizer, or another data.shards and run launch/prepare.py"
            )
        source = cls(folder, manifest)
        if isinstance(folder, RemoteFolder):
            _check_listing(folder, source)
        for shard in source._shards:
            if verify == "open":
                shard.verify_all()
            elif isinstance(folder, Path):
                shard.open()
        return source

    @property
    def remote_files(self) -> list[CachedFile]:
        """The shards' files where the source lies behind a URL, in the order of the shards; none otherwise."""
        return [shard.file for shard in self._shards if isinstance(shard, RemoteShardFile)]

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
        file = self._shards[shard]
        if not 0 <= start <= stop <= file.entry["tokens"]:
            raise IndexError(f"tokens {start}:{stop} of shard {shard}, which has {file.entry['tokens']}")
        return file.read("tokens", start, stop)

    def doc_offsets(self, shard: int) -> np.ndarray:
        """uint64 [num_documents + 1]: document i has the tokens [offset[i], offset[i + 1])."""
        return self._shards[shard].column("doc_offsets", self._shards[shard].entry["documents"] + 1)

    def doc_ids(self, shard: int) -> np.ndarray:
        """uint8 [num_documents, 16]: xxh3-128 of each document's normalised text."""
        return self._shards[shard].column("doc_id", 16 * self._shards[shard].entry["documents"]).reshape(-1, 16)

    def loss_spans(self, shard: int) -> np.ndarray | None:
        """uint64 [num_spans, 2], rising: tokens [start, stop) of the shard that are to be predicted; None: all are."""
        file = self._shards[shard]
        file.open()
        if "loss_spans" not in file.sections:
            return None
        _, first, last = file.sections["loss_spans"]
        return file.read("loss_spans", 0, (last - first) // 8).reshape(-1, 2)

    def cuts(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        """Where its long documents may be cut: ends of paragraphs and of other lines, each int64, rising.

        A place is the first token of what follows. Both are empty for shards that were written without them.
        """
        file = self._shards[shard]
        found = (file.read(name, 0, num) if (num := file.length(name)) else np.empty(0) for name in (PARAGRAPHS, LINES))
        paragraphs, lines = (places.astype(np.int64) for places in found)
        return paragraphs, lines

    def doc_bytes(self, shard: int) -> np.ndarray:
        """uint32 [num_documents]: UTF-8 bytes of each document's normalised text."""
        return self._shards[shard].read("doc_bytes", 0, self._shards[shard].entry["documents"])

    def column(self, shard: int, name: str) -> np.ndarray | None:
        """A column of scores (float16) or labels (uint16), [num_documents], as `columns.py` names it; None: no such."""
        if not self._shards[shard].has(name):
            return None
        return self._shards[shard].read(name, 0, self._shards[shard].entry["documents"])

    def documents(self, shard: int) -> np.ndarray | None:
        """None: all documents of the shard belong to the source (`packing.RowSource`)."""
        return None


def _plan_folder(folder: Path | RemoteFolder) -> Path:
    """Where plans of the source's rows are kept: beside its shards, or beside the cache of those behind a URL."""
    return folder / "plans" if isinstance(folder, Path) else folder.settings.cache.expanduser() / "plans"


def _check_listing(folder: RemoteFolder, source: Source) -> None:
    """Refuse a source whose folder has not all of its shards at their size, before anything is fetched."""
    listing = folder.entries()
    if listing is None:
        return
    problems: list[str] = []
    for file in source.remote_files:
        name, expected = file.entry["file"], file.entry["bytes"]
        if name not in listing:
            problems += file.refuse("does not exist").problems
        elif listing[name] not in (None, expected):
            problems += file.refuse(f"has {listing[name]} bytes but its manifest says {expected}").problems
    if problems:
        raise UserError(problems)


@dataclass(frozen=True)
class HeldOutDocument:
    """A document kept for evaluation: the hex id of its normalised text, the text, and its source's name."""

    id: str
    text: str
    source: str


def open_verified(folder: Path | RemoteFolder, entry: dict[str, Any], source: str) -> BinaryIO:
    """A file whose manifest entry has one checksum ("xxh3"), open for reading after a check of all of it.

    Of a file behind a URL it is the copy in the cache, which stays there until it is closed. Raises UserError where
    the file is missing or altered.
    """
    if isinstance(folder, RemoteFolder):
        return os.fdopen(CachedFile(folder, entry, source).verified_descriptor(), "rb")
    path = folder / entry["file"]
    found = file_checksum(path) if path.is_file() else "none (no such file)"
    if found != entry["xxh3"]:
        raise UserError(
            f"source '{source}': {path.name} has checksum {found} but its manifest says {entry['xxh3']}; "
            f"fetch it again, or remove '{folder}' and run launch/prepare.py"
        )
    return open(path, "rb")


def _held_out_lines(file: BinaryIO) -> Iterator[HeldOutDocument]:
    with file, zstandard.open(file, "rb") as handle:
        for line in io.BufferedReader(handle):
            record = json.loads(line)
            yield HeldOutDocument(record["id"], record["text"], record["source"])


def read_held_out(folder: str | Path | RemoteFolder) -> Iterator[HeldOutDocument]:
    """The held-out documents of a complete source, ordered by id; each file is checked as a whole first.

    Raises UserError, by name, for a source that is not complete and for a file that is missing or altered.
    """
    folder = as_folder(folder)
    manifest = read_manifest(folder)
    return merge_held_out(folder, manifest["source"], manifest["held_out"])


def merge_held_out(
    folder: Path | RemoteFolder, source: str, entries: list[dict[str, Any]]
) -> Iterator[HeldOutDocument]:
    """The documents of the held-out files that manifest `entries` name, ordered by id, after a check of each file."""
    files = [open_verified(folder, entry, source) for entry in entries]
    # Each file is sorted, so a merge gives the order of all while holding one document of each.
    return heapq.merge(*(_held_out_lines(file) for file in files), key=lambda d: d.id)


def recorded_ids(folder: Path, source: str, shards: list[dict[str, Any]], held_out: list[dict[str, Any]]) -> set[bytes]:
    """The ids (16 bytes each) of all documents in the shards and held-out files that manifest entries name."""
    ids: set[bytes] = set()
    for entry in shards:
        raw = ShardFile(folder / entry["file"], entry, source).read("doc_id", 0, 16 * entry["documents"]).tobytes()
        ids.update(raw[at : at + 16] for at in range(0, len(raw), 16))
    ids.update(bytes.fromhex(document.id) for document in merge_held_out(folder, source, held_out))
    return ids
