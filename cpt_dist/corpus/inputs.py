"""Which raw files a source consists of, and how a change in one of them is noticed.

An input is one file, or one folder saved by `datasets`. It isn't opened as text here: `read.py` does that. The
order is sorted by name, so that the same folder gives the same documents on every machine.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cpt_dist.errors import UserError
from cpt_dist.files import file_checksum, fingerprint

FORMATS = {
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
    ".jsonl.zst": "jsonl",
    ".txt": "text",
    ".parquet": "parquet",
}
CURATED_FORMATS = FORMATS | {
    ".md": "text",
    ".markdown": "text",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".pdf": "pdf",
    ".warc": "warc",
    ".warc.gz": "warc",
    ".wet": "warc",
    ".wet.gz": "warc",
}
"""What a curated source takes beside."""
PARTNERS: dict[str, Callable[[Path], Path]] = {
    "megatron": lambda path: path.with_suffix(".bin"),
    "datatrove": lambda path: path.with_name(f"{path.name}.index"),
}
"""Formats whose inputs are two files: the one that is named -> the other."""


@dataclass(frozen=True)
class InputFile:
    """One raw file, or one folder saved by `datasets` (format "dataset"), or token data (`token_files.py`)."""

    path: Path
    format: str
    url: str | None = None
    """Where a file lies that is fetched before it's read; `path` is its name then."""
    num_bytes: int = 0
    """Behind a URL: its size."""
    version: str = ""
    """Behind a URL: what the server says changes with its content."""


@dataclass(frozen=True)
class InputState:
    """What identifies an input's content: bytes in all, newest change in nanoseconds, and its checksum (hex)."""

    file: str
    bytes: int
    changed_ns: int
    checksum: str


def _known(formats: Mapping[str, str]) -> str:
    return ", ".join([*formats, "a folder saved by `datasets`"])


def format_of(path: Path, formats: Mapping[str, str] = FORMATS) -> str | None:
    """The format of a file by its name (`a.b.jsonl.gz` is jsonl), or None where the name says nothing known."""
    name = path.name.lower()
    return next((known for ending, known in formats.items() if name.endswith(ending)), None)


def is_saved_dataset(folder: Path) -> bool:
    """Whether `folder` was written by `Dataset.save_to_disk`."""
    return (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()


def _walk(folder: Path, found: list[InputFile], ignored: list[Path], formats: Mapping[str, str]) -> None:
    if is_saved_dataset(folder):
        found.append(InputFile(folder, "dataset"))
        return
    if (folder / "dataset_dict.json").is_file():
        splits = ", ".join(sorted(str(p) for p in folder.iterdir() if p.is_dir()))
        raise UserError(f"'{folder}' holds several splits of a data set; name those to train on: {splits}")
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            _walk(path, found, ignored, formats)
        elif known := format_of(path, formats):
            found.append(InputFile(path, known))
        else:
            ignored.append(path)


def _match(pattern: str, key: str, ignored: list[Path], formats: Mapping[str, str]) -> list[InputFile]:
    path = Path(pattern)
    is_glob = not path.exists() and glob.has_magic(pattern)
    matches = [Path(p) for p in sorted(glob.glob(pattern, recursive=True))] if is_glob else [path]
    if is_glob and not matches:
        raise UserError(f"{key}: no file matches '{pattern}'; correct the pattern")
    found: list[InputFile] = []
    for match in matches:
        if match.is_dir():
            _walk(match, found, ignored, formats)
        elif not match.exists():
            raise UserError(f"{key}: '{match}' does not exist; correct the path")
        elif known := format_of(match, formats):
            found.append(InputFile(match, known))
        elif is_glob:
            ignored.append(match)
        else:
            curated = " (of a format that only a curated source takes)" if format_of(match, CURATED_FORMATS) else ""
            raise UserError(f"{key}: '{match}' is of an unknown format{curated}; known: {_known(formats)}")
    if not found:
        raise UserError(f"{key}: '{pattern}' holds no file of a known format; known: {_known(formats)}")
    return found


def find_inputs(
    patterns: Sequence[str], key: str, formats: Mapping[str, str] = FORMATS
) -> tuple[list[InputFile], list[Path]]:
    """The inputs that files, folders and globs name, sorted and each once, and the files that were passed over.

    Folders are searched to the bottom; in folders and globs, files of an unknown format are passed over (hidden
    ones silently). Raises UserError, with all problems and prefixed by `key`, for a missing path, an empty folder
    or glob, a format that isn't known, and a folder of several data set splits.
    """
    problems: list[str] = []
    found: dict[Path, InputFile] = {}
    ignored: list[Path] = []
    if not patterns:
        problems.append(f"{key}: names no file; give at least one file, folder or glob")
    for pattern in patterns:
        try:
            found.update((item.path, item) for item in _match(pattern, key, ignored, formats))
        except UserError as error:
            problems.extend(error.problems)
    if problems:
        raise UserError(problems)
    return [found[path] for path in sorted(found)], sorted(set(ignored))


def _files(item: InputFile) -> list[Path]:
    if item.format in ("dataset", "mds"):
        return sorted(p for p in item.path.rglob("*") if p.is_file())
    if item.format in PARTNERS:
        return [item.path, PARTNERS[item.format](item.path)]
    return [item.path]


def input_state(item: InputFile, known: InputState | None = None) -> InputState:
    """The state of an input now; its content is read only if size or time of change differ from `known`.

    Raises UserError where a file cannot be read.
    """
    if item.url is not None:
        return InputState(item.url, item.num_bytes, 0, fingerprint([item.url, item.num_bytes, item.version]))
    files = _files(item)
    try:
        stats = [path.stat() for path in files]
        num_bytes, changed_ns = sum(s.st_size for s in stats), max((s.st_mtime_ns for s in stats), default=0)
        if known and (known.bytes, known.changed_ns) == (num_bytes, changed_ns):
            return known
        sums = [file_checksum(path) for path in files]
    except OSError as error:
        raise UserError(f"'{item.path}' cannot be read ({error.strerror}); check its permissions") from error
    names = [path.relative_to(item.path).as_posix() if item.path.is_dir() else path.name for path in files]
    is_one_file = len(files) == 1 and item.path.is_file()
    checksum = sums[0] if is_one_file else fingerprint(list(zip(names, sums, strict=True)))
    return InputState(str(item.path), num_bytes, changed_ns, checksum)
