"""Raw files behind URLs of any file system of fsspec: s3://, gs://, https://, hf://datasets/… and others.

They are listed with size and version when a curation is planned, and fetched one by one, each by the task that reads
it, into a file that is removed once it was read. Nothing is unpacked or read as text here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import xxhash

from cpt_dist.corpus.inputs import CURATED_FORMATS, InputFile, format_of
from cpt_dist.errors import UserError
from cpt_dist.files import atomic_write

_VERSIONS = ("ETag", "etag", "md5Hash", "crc32c", "generation", "oid", "xet_hash", "mtime", "LastModified", "created")
"""Keys under which file systems tell what changes with a file's content; the first that is there counts."""
_BLOCK_BYTES = 8 << 20
_WAIT_SECONDS = 0.5


def is_remote(pattern: str) -> bool:
    """Whether a pattern of `raw` is a URL."""
    return "://" in pattern


def find_remote(pattern: str, key: str, options: Mapping[str, Any]) -> list[InputFile]:
    """The inputs that a URL of a file, folder or glob names, by name; files of an unknown format are passed over.

    Raises UserError where the file system isn't there, can't be reached or has nothing of a known format.
    """
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(pattern, **options)
        if any(letter in path for letter in "*?["):
            names = system.glob(path)
        else:
            names = system.find(path) if system.isdir(path) else [path]
        found = []
        for name in sorted(names):
            kind = format_of(Path(name), CURATED_FORMATS)
            if kind is None and name != path:
                continue
            if kind is None:
                raise UserError(f"{key}: '{pattern}' is of an unknown format; known: {', '.join(CURATED_FORMATS)}")
            about = system.info(name)
            url = system.unstrip_protocol(name)
            version = next((str(about[one]) for one in _VERSIONS if about.get(one) is not None), "")
            found.append(InputFile(Path(PurePosixPath(name).name), kind, url, int(about.get("size") or 0), version))
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"{key}: '{pattern}' can't be listed ({_line(error)}); check it and your access") from error
    if not found:
        raise UserError(f"{key}: '{pattern}' holds no file of a known format; known: {', '.join(CURATED_FORMATS)}")
    return found


@contextmanager
def fetched(item: InputFile, folder: Path, options: Mapping[str, Any], retries: int) -> Iterator[Path]:
    """A local copy of a remote input under `folder`, removed at the end. Raises UserError where it can't be fetched."""
    assert item.url is not None
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{xxhash.xxh3_64_hexdigest(item.url.encode())}-{item.path.name}"
    if not path.is_file() or path.stat().st_size != item.num_bytes:
        _fetch(item, path, options, retries)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _fetch(item: InputFile, path: Path, options: Mapping[str, Any], retries: int) -> None:
    import fsspec

    assert item.url is not None
    for attempt in range(retries + 1):
        try:
            system, name = fsspec.core.url_to_fs(item.url, **options)
            with system.open(name, "rb") as remote, atomic_write(path) as local:
                while block := remote.read(_BLOCK_BYTES):
                    local.write(block)
            if item.num_bytes and path.stat().st_size != item.num_bytes:
                raise OSError(f"{path.stat().st_size} bytes came of {item.num_bytes}")
            return
        except (OSError, ValueError) as error:
            if attempt == retries:
                raise UserError(f"'{item.url}' can't be fetched ({_line(error)}); check it and run again") from error
            time.sleep(_WAIT_SECONDS * 2**attempt)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
