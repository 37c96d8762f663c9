"""Files behind a URL: which URLs there are, one range read at a time, tried again while trying again can help.

It knows fsspec and nothing of shards or checksums (`shard_cache.py` judges what came). A mistake that waiting can't
mend, such as a missing file or a refused key, ends at once; the waits in between grow and are drawn at random ("full
jitter", Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog 2015), so that ranks don't return as one.
"""

from __future__ import annotations

import os
import random
import re
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
from fsspec.core import split_protocol

from cpt_dist.config import DataConfig, parse_quantity
from cpt_dist.errors import UserError

LONGEST_WAIT_SECONDS = 30.0
"""Between two attempts."""
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "http": "http", "https": "http"}
_REFUSED = (401, 403)
_PASSING = (408, 425, 429)
_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound")


@dataclass(frozen=True)
class FetchSettings:
    """How shards behind a URL are fetched and kept: the fields of `DataConfig` that concern it."""

    cache: Path = Path("~/.cache/cpt_dist/shards")
    cache_bytes: int = 50 * 10**9
    retries: int = 6
    """Further attempts at a range after the first."""
    backoff_seconds: float = 0.5
    """Longest wait before the first further attempt; doubled for each one."""
    timeout_seconds: float = 60.0
    """An attempt that takes longer has failed; also the longest wait for room in the cache."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the fsspec file system."""

    @classmethod
    def of(cls, data: DataConfig) -> FetchSettings:
        """The settings of a validated configuration."""
        return cls(
            Path(data.cache).expanduser(),
            parse_quantity(data.cache_bytes, "data.cache_bytes"),
            data.fetch_retries,
            data.fetch_backoff_seconds,
            data.fetch_timeout_seconds,
            dict(data.storage_options),
        )


def is_url(path: str | Path) -> bool:
    """Whether `path` is a URL (s3://bucket/folder) and no path of this machine."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", str(path)) is not None


class PassingError(Exception):
    """A failure that another attempt may mend."""


class LastingError(Exception):
    """A failure that another attempt won't mend."""


@dataclass(frozen=True)
class RemoteFolder:
    """A folder behind a URL. Holds no connection, so it is cheap to copy into other processes."""

    url: str
    settings: FetchSettings = field(default_factory=FetchSettings)

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return self.url.rstrip("/").rsplit("/", 1)[-1]

    def __truediv__(self, name: str) -> RemoteFolder:
        return RemoteFolder(f"{self.url.rstrip('/')}/{name}", self.settings)

    def __str__(self) -> str:
        return self.url

    def _system(self) -> tuple[Any, str]:
        """The file system (fsspec keeps one a process and makes another after a fork) and the path on it."""
        protocol = split_protocol(self.url)[0]
        try:
            return fsspec.core.url_to_fs(self.url, **self.settings.options)
        except ImportError as error:
            extra = _EXTRAS.get(protocol)
            fix = f"pip install 'cpt_dist[{extra}]'" if extra else "install the package that fsspec names"
            raise UserError(f"'{self.url}': {protocol}:// can't be read ({error}); {fix}") from error
        except ValueError as error:
            raise UserError(f"'{self.url}': {error}; give a folder or a URL such as s3://bucket/folder") from error

    def _attempt(self, method: str, **arguments: Any) -> Any:
        """One call of the file system, its failure sorted into passing and lasting."""
        system, path = self._system()
        call, seconds = getattr(system, method), self.settings.timeout_seconds
        try:
            if system.async_impl:
                return call(path, timeout=seconds, **arguments)
            return _within(seconds, lambda: call(path, **arguments))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise LastingError("it does not exist") from error
        except PermissionError as error:
            raise LastingError(f"access is refused ({_short(error)})") from error
        except _found("botocore.exceptions", *_NO_CREDENTIALS) as error:
            raise LastingError(f"there are no credentials for it ({_short(error)})") from error
        except _network_errors() as error:
            status = getattr(error, "status", None)
            if status in _REFUSED:
                raise LastingError(f"access is refused ({_short(error)})") from error
            if isinstance(status, int) and 400 <= status < 500 and status not in _PASSING:
                raise LastingError(_short(error)) from error
            raise PassingError(_short(error)) from error

    def read(self, start: int | None = None, stop: int | None = None) -> bytes:
        """Bytes [start, stop) of the file, in one attempt; fewer or more where the server answers with these.

        Raises `PassingError` or `LastingError`.
        """
        return self._attempt("cat_file", start=start, end=stop)

    def read_whole(self) -> bytes | None:
        """The whole of a small file, None where it doesn't exist; UserError where it can't be had.

        The file's folder is named as the source, which is what it is.
        """
        where = f"source '{self.url.rsplit('/', 2)[-2]}': '{self.url}'"
        attempts = Persistence(self.settings)
        while True:
            try:
                return self.read()
            except LastingError as error:
                if isinstance(error.__cause__, FileNotFoundError):
                    return None
                raise UserError(f"{where} cannot be read: {error}; see docs/streaming.md") from error
            except PassingError as error:
                if not attempts.again():
                    raise UserError(
                        f"{where} cannot be read: {error} ({attempts.count} attempts); try again later, or raise "
                        "data.fetch_retries"
                    ) from error

    def entries(self) -> dict[str, int | None] | None:
        """Name -> size in bytes (None: unknown, or a folder) of what lies in the folder; None where it can't be listed.

        Plain HTTP has no listing that can be relied on, so none is asked for there.
        """
        if split_protocol(self.url)[0] in ("http", "https"):
            return None
        attempts = Persistence(self.settings)
        system, path = self._system()
        system.invalidate_cache(path)  # fsspec remembers listings for as long as the process lives
        while True:
            try:
                found = self._attempt("ls", detail=True)
                return {
                    item["name"].rstrip("/").rsplit("/", 1)[-1]: item["size"] if item["type"] == "file" else None
                    for item in found
                }
            except LastingError:
                return None  # a key may allow reading and not listing
            except PassingError as error:
                if not attempts.again():
                    raise UserError(f"'{self.url}' cannot be listed: {error} ({attempts.count} attempts)") from error


class Persistence:
    """Counts attempts and waits between them: at most backoff * 2**n seconds, drawn at random."""

    def __init__(self, settings: FetchSettings) -> None:
        self._settings = settings
        self.count = 1
        """Attempts so far."""

    def again(self) -> bool:
        """Wait and say True while there are attempts left."""
        if self.count > self._settings.retries:
            return False
        longest = min(LONGEST_WAIT_SECONDS, self._settings.backoff_seconds * 2 ** (self.count - 1))
        # The system's generator: drawing from the shared one would change what a training run draws.
        time.sleep(random.SystemRandom().uniform(longest / 2, longest))
        self.count += 1
        return True


def _within(seconds: float, call: Callable[[], Any]) -> Any:
    """The result of `call`, or TimeoutError after `seconds`: a file system of its own kind may know no time-out.

    A call that is given up stays behind in a daemon thread, which the end of the process ends.
    """
    outcome: list[tuple[Any, Exception | None]] = []

    def run() -> None:
        try:
            outcome.append((call(), None))
        except Exception as error:  # noqa: BLE001 - it is raised again below, in the thread that asked
            outcome.append((None, error))

    thread = threading.Thread(target=run, name="read", daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TimeoutError(f"no answer within {seconds:g} seconds")
    result, error = outcome[0]
    if error is not None:
        raise error
    return result


def _found(module: str, *names: str) -> tuple[type[BaseException], ...]:
    """Exception classes of a library, looked up where it was imported: one that wasn't can't have raised any."""
    kinds = (getattr(sys.modules.get(module), name, None) for name in names)
    return tuple(kind for kind in kinds if kind is not None)


def _network_errors() -> tuple[type[BaseException], ...]:
    """What file systems raise for a failed transfer. OSError covers sockets, time-outs and requests."""
    return (
        OSError,
        *_found("aiohttp", "ClientError"),
        *_found("botocore.exceptions", "BotoCoreError", "ClientError"),
        *_found("gcsfs.retry", "HttpError"),
    )


def _short(error: BaseException) -> str:
    """An exception on one line of readable length."""
    text = " ".join(str(error).split()) or type(error).__name__
    status = getattr(error, "status", None)
    message = getattr(error, "message", None)
    if isinstance(status, int):
        text = f"HTTP {status} {message}" if isinstance(message, str) else f"HTTP {status}"
    return text if len(text) <= 200 else text[:197] + "…"


def shards_folder(data: DataConfig) -> Path | RemoteFolder:
    """The folder of the configured shards: one of this machine, or one behind a URL."""
    return RemoteFolder(data.shards, FetchSettings.of(data)) if is_url(data.shards) else Path(data.shards)


def source_folder(data: DataConfig, name: str) -> Path | RemoteFolder:
    """Where the shards of source `name` lie."""
    return shards_folder(data) / name


def as_folder(folder: str | os.PathLike[str] | RemoteFolder) -> Path | RemoteFolder:
    """`folder` as a Path, or as a RemoteFolder with the default settings where it is a URL."""
    if isinstance(folder, RemoteFolder):
        return folder
    return RemoteFolder(str(folder)) if is_url(str(folder)) else Path(folder)
