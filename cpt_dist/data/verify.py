"""Integrity of a shard set: python -m cpt_dist.data.verify shards=FOLDER_OR_URL.

Everything that the manifests say is compared with what is there: every block of every shard and held-out file, the
documents in them, the sums of the counts, and the tokenizer of all sources. All problems are named, not the first
only. It mends and removes nothing.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from cpt_dist.cli import EXIT_USER_ERROR
from cpt_dist.data.remote import FetchSettings, RemoteFolder, as_folder
from cpt_dist.data.shard_cache import file_entry
from cpt_dist.data.shards import Source, is_complete, merge_held_out, read_manifest, tokenizer_fingerprint
from cpt_dist.errors import UserError, nearest

_KEYS = ("shards", "sources", "tokenizer")


@dataclass
class SourceReport:
    """What was found of one source."""

    name: str
    problems: list[str] = field(default_factory=list)
    manifest: dict[str, Any] = field(default_factory=dict)

    def line(self) -> str:
        """The source on one line."""
        if self.problems:
            return f"{self.name}: {len(self.problems)} problem(s)"
        manifest = self.manifest
        num_bytes = sum(entry["bytes"] for entry in [*manifest["shards"], *manifest["held_out"]])
        return (
            f"{self.name}: whole; {len(manifest['shards'])} shards, {manifest['documents']} documents, "
            f"{manifest['tokens']} tokens, {manifest['counts']['held_out']} held out, {num_bytes} bytes"
        )


def verify_source(folder: Path | RemoteFolder, name: str, tokenizer: str | None = None) -> SourceReport:
    """Check all of one source; `tokenizer` is the fingerprint that it must have been made with."""
    report = SourceReport(name)
    try:
        report.manifest = read_manifest(folder)
    except UserError as error:
        report.problems += error.problems
        return report
    manifest = report.manifest
    report.problems += (f"source '{name}': {what}" for what in _sums(manifest))
    if manifest["source"] != name:
        report.problems.append(f"source '{name}': its manifest is of source '{manifest['source']}'; rename the folder")
    made_with = manifest["tokenizer"]["fingerprint"]
    if tokenizer not in (None, made_with):
        report.problems.append(f"source '{name}': its shards were made with tokenizer {made_with}, not {tokenizer}")
    num_before = len(report.problems)
    for entry in [*manifest["shards"], *manifest["held_out"], *manifest.get("provenance", [])]:
        report.problems += _file_problems(folder, name, entry)
    if len(report.problems) == num_before:
        report.problems += (f"source '{name}': {what}" for what in _contents(folder, manifest))
    return report


def _sums(manifest: dict[str, Any]) -> Iterator[str]:
    counts, shards = manifest["counts"], manifest["shards"]
    sums = {
        "tokens": (manifest["tokens"], sum(entry["tokens"] for entry in shards)),
        "documents": (manifest["documents"], sum(entry["documents"] for entry in shards)),
        "counts.kept": (counts["kept"], manifest["documents"]),
        "counts.held_out": (counts["held_out"], sum(entry["documents"] for entry in manifest["held_out"])),
        "counts.read": (counts["read"], counts["kept"] + counts["held_out"] + sum(counts["dropped"].values())),
    }
    for what, (said, found) in sums.items():
        if said != found:
            yield f"its manifest says {what} {said}, but its parts add up to {found}; prepare it again"


def _file_problems(folder: Path | RemoteFolder, source: str, entry: dict[str, Any]) -> Iterator[str]:
    """Size and every block of a file, as it is where it lies; a local folder is read in place."""
    entry, where = file_entry(entry), f"source '{source}': '{folder / entry['file']}'"
    try:
        if isinstance(folder, RemoteFolder):
            content: Any = (folder / entry["file"]).read_whole()
        else:
            path = folder / entry["file"]
            content = np.memmap(path, np.uint8, "r") if path.is_file() and path.stat().st_size else None
    except UserError as error:
        yield from error.problems
        return
    except OSError as error:
        yield f"{where} cannot be read ({error.strerror}); fetch it again"
        return
    if content is None:
        yield f"{where} does not exist or is empty; fetch it again"
        return
    if len(content) != entry["bytes"]:
        yield f"{where} has {len(content)} bytes but its manifest says {entry['bytes']}; fetch it again"
    view, size = memoryview(content), entry["block_bytes"]
    for block, expected in enumerate(entry["blocks"]):
        piece = view[block * size : (block + 1) * size]
        if len(piece) < min(size, entry["bytes"] - block * size):
            return  # cut off here, which the size has said
        found = xxhash.xxh3_64_hexdigest(piece)
        if found != expected:
            yield f"{where} block {block} has checksum {found} but its manifest says {expected}; fetch it again"


def _contents(folder: Path | RemoteFolder, manifest: dict[str, Any]) -> Iterator[str]:
    """What checksums can't say: that the files hold what a reader of them relies on."""
    source = Source.open(folder)
    ids: Counter[bytes] = Counter()
    for shard, entry in enumerate(manifest["shards"]):
        offsets = source.doc_offsets(shard).astype(np.int64)
        if offsets[0] != 0 or offsets[-1] != entry["tokens"] or np.any(np.diff(offsets) < 0):
            yield f"{entry['file']} has document boundaries that don't run from 0 to its {entry['tokens']} tokens"
        largest = int(source.tokens(shard, 0, entry["tokens"]).max(initial=0))
        if largest >= manifest["tokenizer"]["vocab_size"]:
            yield f"{entry['file']} has token {largest}, beyond its vocabulary {manifest['tokenizer']['vocab_size']}"
        ids.update(row.tobytes() for row in source.doc_ids(shard))
    held_out = [document.id for document in merge_held_out(folder, source.name, manifest["held_out"])]
    if len(held_out) != manifest["counts"]["held_out"]:
        said = manifest["counts"]["held_out"]
        yield f"its held-out files have {len(held_out)} documents, but its manifest says {said}"
    if held_out != sorted(held_out):
        yield "its held-out documents are not in the order of their ids"
    ids.update(bytes.fromhex(document) for document in held_out)
    twice = sum(number > 1 for number in ids.values())
    if twice:
        yield f"{twice} document(s) are in it more than once, counted with those held out"


def verify(shards: str, names: list[str] | None = None, tokenizer: str | None = None) -> list[SourceReport]:
    """A report of each source in a folder or URL; `tokenizer` is a folder whose fingerprint all must have.

    What lies behind a URL is fetched into a temporary folder, never taken from the cache. Raises UserError where no
    source is found.
    """
    wanted = tokenizer_fingerprint(tokenizer) if tokenizer else None
    with tempfile.TemporaryDirectory(prefix="cpt_dist-verify-") as scratch:
        folder = as_folder(shards)
        if isinstance(folder, RemoteFolder):
            bound = shutil.disk_usage(scratch).free
            folder = replace(folder, settings=FetchSettings(Path(scratch) / "cache", bound, timeout_seconds=600.0))
        reports = [verify_source(folder / name, name, wanted) for name in names or _sources_in(folder)]
    made_with = {report.name: report.manifest["tokenizer"]["fingerprint"] for report in reports if report.manifest}
    usual = Counter(made_with.values()).most_common(1)[0][0] if made_with else None
    for report in reports:
        other = made_with.get(report.name, usual)
        if wanted is None and other != usual:
            report.problems.append(
                f"source '{report.name}': its shards were made with tokenizer {other}, the others' with {usual}; "
                "prepare all with one tokenizer"
            )
    return reports


def _sources_in(folder: Path | RemoteFolder) -> list[str]:
    if isinstance(folder, RemoteFolder):
        listing = folder.entries()
        if listing is None:
            raise UserError(f"'{folder}' cannot be listed; name its sources: sources=NAME,NAME")
        names = sorted(name for name, size in listing.items() if size is None)
    elif folder.is_dir():
        names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    else:
        raise UserError(f"'{folder}' does not exist; give a folder of shards or its URL: shards=…")
    if not names:
        one = f"; it is a source itself, so give shards={str(folder).rsplit('/', 1)[0]}" if is_complete(folder) else ""
        raise UserError(f"'{folder}' holds no source (no folder){one}")
    return names


def main(arguments: list[str]) -> int:
    """The command: prints a line a source, problems to the error stream; returns the exit code, 0 or 2."""
    try:
        given = {}
        for word in arguments:
            key, equals, value = word.partition("=")
            if key not in _KEYS or not equals or not value:
                raise UserError(f"'{word}' is not understood; {nearest(key, _KEYS)} (as key=value)")
            given[key] = value
        if "shards" not in given:
            raise UserError("shards is missing; give it: shards=FOLDER or shards=s3://bucket/folder")
        names = given["sources"].split(",") if "sources" in given else None
        reports = verify(given["shards"], names, given.get("tokenizer"))
    except UserError as error:
        reports = []
        problems = error.problems
    else:
        problems = [problem for report in reports for problem in report.problems]
    for report in reports:
        print(report.line(), flush=True)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return EXIT_USER_ERROR if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
