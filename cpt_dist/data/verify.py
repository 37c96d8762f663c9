"""Integrity of a shard set: python -m cpt_dist.data.verify shards=FOLDER_OR_URL [sources=NAME,NAME] [tokenizer=FOLDER]

Everything that the manifests say is compared with what is there: every block of every shard, held-out and provenance
file, the documents in them, the sums of the counts, and the tokenizer of all sources. All problems are named, not the
first only (`shard_check.py` finds those of a file). It mends and removes nothing.
"""

from __future__ import annotations

import io
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from rich.table import Table
from rich.text import Text

from cpt_dist.cli import EXIT_USER_ERROR
from cpt_dist.console import output_console
from cpt_dist.data.remote import RemoteFolder, as_folder
from cpt_dist.data.shard_check import byte_problems, content_problems, local_copy
from cpt_dist.data.shards import is_complete, read_manifest, tokenizer_fingerprint
from cpt_dist.errors import UserError, nearest

KEYS = ("shards", "sources", "tokenizer")


@dataclass
class SourceReport:
    """What was found of one source."""

    name: str
    problems: list[str] = field(default_factory=list)
    manifest: dict[str, Any] = field(default_factory=dict)


def verify_source(folder: Path | RemoteFolder, name: str, tokenizer: str | None = None) -> SourceReport:
    """Check all of one source; `tokenizer` is the fingerprint that it must have been made with."""
    report = SourceReport(name)
    try:
        manifest = report.manifest = read_manifest(folder)
        listing = folder.entries() if isinstance(folder, RemoteFolder) else None
    except UserError as error:
        report.problems += error.problems
        return report
    report.problems += (f"source '{name}': {what}" for what in _sums(manifest))
    if manifest["source"] != name:
        report.problems.append(f"source '{name}': its manifest is of source '{manifest['source']}'; rename the folder")
    made_with = manifest["tokenizer"]["fingerprint"]
    if tokenizer not in (None, made_with):
        report.problems.append(f"source '{name}': its shards were made with tokenizer {made_with}, not {tokenizer}")
    ids: list[np.ndarray] = []
    num_before = len(report.problems)
    for kind, entry in _files(manifest):
        try:
            with local_copy(folder, entry, listing) as path:
                found = list(_file_problems(path, kind, entry, manifest, ids))
        except (UserError, OSError) as error:
            found = [f"cannot be read ({error}); fetch it again"]
        report.problems += (f"source '{name}': '{folder / entry['file']}' {what}" for what in found)
    if len(report.problems) == num_before:
        twice = _times_two(ids)
        if twice:
            report.problems.append(f"source '{name}': {twice} document(s) are in it more than once; prepare it again")
    return report


def _files(manifest: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(kind, entry) of every file that the manifest names."""
    return [(kind, entry) for kind in ("shards", "held_out", "provenance") for entry in manifest.get(kind, [])]


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


def _file_problems(
    path: Path | None, kind: str, entry: dict[str, Any], manifest: dict[str, Any], ids: list[np.ndarray]
) -> Iterator[str]:
    """The problems of one file; the ids of its documents, uint8 [documents, 16], are added to `ids`."""
    damages = byte_problems(path, entry, manifest["dtype"] if kind == "shards" else None)
    yield from damages
    if damages or path is None:
        return
    if kind == "shards":
        from safetensors.numpy import load_file

        tensors = load_file(path)
        yield from content_problems(tensors, entry, manifest["tokenizer"]["vocab_size"])
        ids.append(tensors["doc_id"])
    elif kind == "held_out":
        with open(path, "rb") as raw, zstandard.open(raw, "rb") as handle:
            documents = [json.loads(line)["id"] for line in io.BufferedReader(handle)]
        if len(documents) != entry["documents"]:
            yield f"has {len(documents)} documents but its manifest says {entry['documents']}; prepare it again"
        if documents != sorted(documents):
            yield "has documents that are not in the order of their ids; prepare it again"
        ids.append(np.frombuffer(bytes.fromhex("".join(documents)), dtype=np.uint8).reshape(-1, 16))


def _times_two(ids: Sequence[np.ndarray]) -> int:
    """How many ids there are more than once."""
    if not ids:
        return 0
    every = np.ascontiguousarray(np.concatenate(ids)).view("S16").ravel()
    return int(np.count_nonzero(np.unique(every, return_counts=True)[1] > 1))


def verify(shards: str, names: list[str] | None = None, tokenizer: str | None = None) -> list[SourceReport]:
    """A report of each source in a folder or URL; `tokenizer` is a folder whose fingerprint all must have.

    What lies behind a URL is read from there, a file at a time through a temporary folder, never from the cache.
    Raises UserError where no source is found.
    """
    wanted = tokenizer_fingerprint(tokenizer) if tokenizer else None
    folder = as_folder(shards)
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
        fix = "give the folder that launch/prepare.py wrote to (data.shards)"
        if is_complete(folder):
            fix = f"it is a source itself, so give shards={str(folder).rsplit('/', 1)[0]}"
        raise UserError(f"'{folder}' holds no source (no folder); {fix}")
    return names


def show(reports: Sequence[SourceReport]) -> None:
    """The sources without a problem as a table, if there are any."""
    whole = [report for report in reports if not report.problems]
    if not whole:
        return
    table = Table(title="whole: every block, count and id agrees", title_justify="left", expand=False)
    for column in ("source", "role", "shards", "documents", "tokens", "held out", "bytes"):
        table.add_column(column, justify="left" if column in ("source", "role") else "right", overflow="fold")
    for report in whole:
        manifest = report.manifest
        numbers = (
            len(manifest["shards"]),
            manifest["documents"],
            manifest["tokens"],
            manifest["counts"]["held_out"],
            sum(entry["bytes"] for _, entry in _files(manifest)),
        )
        table.add_row(Text(report.name), manifest["role"], *(f"{number:,}" for number in numbers))
    output_console().print(table)


def main(words: Sequence[str]) -> int:
    """The command: a table of what is whole, a line a problem on the error stream; returns the exit code, 0 or 2."""
    if {"-h", "--help"} & set(words):
        print(__doc__)
        return 0
    try:
        given = _arguments(words)
        names = given["sources"].split(",") if "sources" in given else None
        reports = verify(given["shards"], names, given.get("tokenizer"))
    except UserError as error:
        reports, problems = [], error.problems
    else:
        problems = [problem for report in reports for problem in report.problems]
    show(reports)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return EXIT_USER_ERROR if problems else 0


def _arguments(words: Sequence[str]) -> dict[str, str]:
    given = {}
    for word in words:
        key, equals, value = word.partition("=")
        if key not in KEYS:
            raise UserError(f"there is no key '{key}'; {nearest(key, KEYS)}")
        if not equals or not value:
            raise UserError(f"'{word}' has no value; write it as {key}=VALUE")
        given[key] = value
    if "shards" not in given:
        raise UserError("shards is missing; give it: shards=FOLDER or shards=s3://bucket/folder")
    return given


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
