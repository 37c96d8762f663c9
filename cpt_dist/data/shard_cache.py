"""A bounded folder of files fetched from URLs, shared by all processes of a host.

A file in it is whole, and every block of it agreed with the manifest; its name is a hash of those checksums, so the
same shard under another URL or in a source that has grown is fetched once. It decides nothing about what is read when.
Processes agree through names and file locks alone: a rename completes a file, a shared lock says that it is in use, and
a lock ends with its process, so a killed one leaves nothing but a beginning that the next one goes on with.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import random
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import xxhash

from cpt_dist.config import DataConfig
from cpt_dist.data.remote import (
    LONGEST_WAIT_SECONDS,
    FetchSettings,
    LastingError,
    PassingError,
    Persistence,
    RemoteFolder,
)
from cpt_dist.errors import UserError
from cpt_dist.files import fingerprint, sync_folder

_CHUNK_BYTES = 8 << 20
"""Asked for at one time: large beside a request's latency, small beside what a failed one costs."""

_POLL_SECONDS = 0.05

_mapped: weakref.WeakValueDictionary[Path, mmap.mmap] = weakref.WeakValueDictionary()
"""Files that something in this process has mapped at present."""


def file_entry(entry: dict[str, Any]) -> dict[str, Any]:
    """A manifest entry with the checksum of the whole file (held-out documents) as one of a single block."""
    if "blocks" in entry:
        return entry
    return {**entry, "block_bytes": max(1, entry["bytes"]), "blocks": [entry["xxh3"]] if entry["bytes"] else []}


class CachedFile:
    """A file behind a URL, or the blocks [first, last) of it, with its entry in the manifest.

    The entry has "file", "bytes", and "block_bytes" and "blocks" or "xxh3".
    """

    def __init__(
        self, folder: RemoteFolder, entry: dict[str, Any], source: str, first: int = 0, last: int | None = None
    ) -> None:
        self.entry = file_entry(entry)
        self.settings = folder.settings
        self._first = first
        if (first, last) != (0, None):
            blocks, block_bytes = self.entry["blocks"][first:last], self.entry["block_bytes"]
            num_bytes = min(entry["bytes"] - first * block_bytes, len(blocks) * block_bytes)
            self.entry = {**self.entry, "bytes": num_bytes, "blocks": blocks}
        self._remote = folder / entry["file"]
        self._source = source
        key = fingerprint({"bytes": self.entry["bytes"], "blocks": self.entry["blocks"]})
        # The size is in the name, so that a file in the making counts with all that it will take.
        self.path = self.settings.cache.expanduser() / f"{key}-{self.entry['bytes']}.whole"
        self._part = self.path.with_suffix(".part")

    def refuse(self, what: str, fix: str = "put the right file there, or prepare the source again") -> UserError:
        """A UserError that names source, URL and `what` is wrong."""
        return UserError(f"source '{self._source}': '{self._remote}' {what}; {fix}")

    def descriptor(self) -> int:
        """A descriptor of the whole file, open for reading; it is fetched first where it isn't there.

        Nothing evicts the file before every copy of the descriptor is closed. Raises UserError where it can't be had.
        """
        patience = _Patience(self)
        while True:
            found = self._open_whole()
            if found is not None:
                return found
            with self._own_part() as part:
                if part is None:
                    patience.another_fetches()
                elif self.path.exists():
                    continue  # completed since it was looked for
                elif make_room(self.settings, self.path):
                    self._fetch(part)
                    continue
                else:
                    patience.no_room()
            # Drawn at random, so that two processes that have no room for each other's file don't step in time.
            time.sleep(random.SystemRandom().uniform(_POLL_SECONDS / 2, _POLL_SECONDS))

    def verified_descriptor(self) -> int:
        """`descriptor` of a file all of whose blocks agree now; a copy damaged on this disk is fetched again."""
        descriptor = self.descriptor()
        if self._agreeing_bytes(descriptor) != self.entry["bytes"]:
            os.close(descriptor)
            self.forget()
            descriptor = self.descriptor()
        return descriptor

    def map(self) -> mmap.mmap:
        """The file's content, mapped; in use until the last view of it is gone. Raises UserError as `descriptor`."""
        return self._map(self.descriptor)

    def verified_map(self) -> mmap.mmap:
        """`map` of a file all of whose blocks agree now."""
        return self._map(self.verified_descriptor)

    def _map(self, open_file: Callable[[], int]) -> mmap.mmap:
        mapped = _mapped.get(self.path)
        if mapped is None:
            descriptor = open_file()
            try:
                # It keeps a duplicate of the descriptor, and so the lock, for as long as it lives.
                mapped = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
            finally:
                os.close(descriptor)
            _mapped[self.path] = mapped
        return mapped

    def touch(self) -> bool:
        """Count the file as used now; False where it isn't there."""
        try:
            os.utime(self.path)
        except FileNotFoundError:
            return False
        return True

    def prefetch(self, keep: Collection[Path] = ()) -> bool:
        """Fetch the file if it isn't there, unless another process is at it or there is no room; True if fetched.

        Room is made neither by what is in use nor by the files of `keep`.
        """
        if self.path.exists():
            return False
        with self._own_part() as part:
            if part is None or self.path.exists() or not make_room(self.settings, self.path, keep):
                return False
            self._fetch(part)
            return True

    def forget(self) -> None:
        """Remove the file from the folder (its copy there is damaged)."""
        self.path.unlink(missing_ok=True)
        _mapped.pop(self.path, None)

    def _open_whole(self) -> int | None:
        """A descriptor with a shared lock, under which nothing evicts the file; None where the file isn't there."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:  # it is being evicted
            os.close(descriptor)
            return None
        if not _is_at(descriptor, self.path) or os.fstat(descriptor).st_size != self.entry["bytes"]:
            if _is_at(descriptor, self.path):
                self.forget()
            os.close(descriptor)
            return None
        self.touch()  # last use, for the eviction
        return descriptor

    @contextmanager
    def _own_part(self) -> Iterator[int | None]:
        """A locked descriptor of the file in the making, None where another process holds it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        locked = False
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                locked = True
            except BlockingIOError:
                pass
            # The one who held it may have completed or removed it between open and lock.
            yield descriptor if locked and _is_at(descriptor, self._part) else None
        finally:
            if locked and os.fstat(descriptor).st_size == 0 and _is_at(descriptor, self._part):
                self._part.unlink()
            _unlock(descriptor)

    def _fetch(self, part: int) -> None:
        """Complete the locked file in the making, from the last block in it that agrees."""
        size, block_bytes = self.entry["bytes"], self.entry["block_bytes"]
        offset = self._first * block_bytes
        at = self._agreeing_bytes(part)
        os.ftruncate(part, at)
        attempts = Persistence(self.settings)
        chunk_bytes = _CHUNK_BYTES
        while at < size:
            stop = min(size, at + max(block_bytes, chunk_bytes // block_bytes * block_bytes))
            try:
                content = self._remote.read(offset + at, offset + stop)
            except LastingError as error:
                raise self.refuse(f"block {self._first + at // block_bytes} cannot be fetched: {error}") from error
            except PassingError as error:
                failure = f"cannot be fetched: {error}"
            else:
                if len(content) > stop - at:  # a server that knows no ranges
                    content = content[offset + at : offset + stop]
                good, failure = self._check(at, content, stop)
                if good:
                    os.pwrite(part, memoryview(content)[:good], at)
                    at += good
                    attempts = Persistence(self.settings)
            if failure:
                chunk_bytes //= 2  # a slow server may manage a smaller part within the time-out
                if not attempts.again():
                    raise self.refuse(
                        f"block {self._first + at // block_bytes} {failure} ({attempts.count} attempts)",
                        "check the network and the file there, or raise data.fetch_retries",
                    )
        os.fsync(part)
        os.utime(self._part)
        os.replace(self._part, self.path)
        sync_folder(self.path.parent)

    def _check(self, at: int, content: bytes, stop: int) -> tuple[int, str]:
        """Bytes of whole blocks from `at` on that agree with the manifest, and what is wrong with the next one."""
        block_bytes, size = self.entry["block_bytes"], self.entry["bytes"]
        view, good = memoryview(content), 0
        while at + good < size:
            length = min(block_bytes, size - at - good)
            if good + length > len(view):
                missing = f"was cut off: {len(view)} of {stop - at} bytes came"
                return good, "" if at + good >= stop else missing
            block = (at + good) // block_bytes
            found, expected = xxhash.xxh3_64_hexdigest(view[good : good + length]), self.entry["blocks"][block]
            if found != expected:
                return good, f"has checksum {found} but its manifest says {expected}"
            good += length
        return good, ""

    def _agreeing_bytes(self, descriptor: int) -> int:
        """Length of a file's beginning whose blocks agree; of one in the making no record of them could be truer."""
        at = 0
        while block := os.pread(descriptor, self.entry["block_bytes"], at):
            number = at // self.entry["block_bytes"]
            blocks = self.entry["blocks"]
            if number >= len(blocks) or xxhash.xxh3_64_hexdigest(block) != blocks[number]:
                break
            at += len(block)
        return at


def check_cache_holds(data: DataConfig, sources: Mapping[str, Sequence[CachedFile]]) -> None:
    """Refuse a cache too small for the shards that are drawn from at one time: each would be fetched for every row.

    `sources` is name -> its files behind a URL; strata of a source draw from windows of their own, maybe over the same
    files. Raises UserError that names the sizes which would do.
    """
    settings = FetchSettings.of(data)
    sizes = {name: sorted((f.entry["bytes"] for f in files), reverse=True) for name, files in sources.items() if files}
    window = data.shuffle_window_shards
    # Where a window ends within a batch, the batch draws from this one and the next.
    ahead = max(window, data.prefetch_shards)
    at_a_time = {name: sum(largest[: window + ahead] if window else largest) for name, largest in sizes.items()}
    every = {file.path: file.entry["bytes"] for files in sources.values() for file in files}
    needed = min(sum(at_a_time.values()), sum(every.values()))
    if needed > settings.cache_bytes:
        largest = ", ".join(f"{name} {num_bytes}" for name, num_bytes in at_a_time.items())
        what = f"{window} shards a window and {ahead} of the next" if window else "all of a source's shards"
        fix = (
            "lower data.shuffle_window_shards or data.prefetch_shards"
            if window
            else "set data.shuffle_window_shards=8 to draw from 8 shards of each at a time"
        )
        raise UserError(
            f"data.cache_bytes: {settings.cache_bytes} bytes hold less than rows are drawn from at a time, {needed} "
            f"bytes ({what}: {largest}); raise it to {needed} or more, or {fix}"
        )


class _Patience:
    """How long a process waits for others before it gives up with a UserError."""

    def __init__(self, file: CachedFile) -> None:
        self._file, self._settings = file, file.settings
        self._since, self._seen = time.monotonic(), -1

    def no_room(self) -> None:
        """There is no room now; raises when that has lasted as long as an attempt may take."""
        if time.monotonic() - self._since > self._settings.timeout_seconds:
            raise self._file.refuse(
                f"has {self._file.entry['bytes']} bytes, but the {self._settings.cache_bytes} bytes of "
                f"'{self._file.path.parent}' are full of what is in use",
                "raise data.cache_bytes, or lower data.shuffle_window_shards or data.prefetch_shards",
            )

    def another_fetches(self) -> None:
        """Another process holds the file in the making; raises when that hasn't grown for longer than all attempts."""
        part = self._file.path.with_suffix(".part")
        with suppress(FileNotFoundError):
            if (size := part.stat().st_size) != self._seen:
                self._since, self._seen = time.monotonic(), size
        longest = (self._settings.retries + 2) * (self._settings.timeout_seconds + LONGEST_WAIT_SECONDS)
        if time.monotonic() - self._since > longest:
            raise self._file.refuse(
                f"is being fetched by another process of this host, which has come no further for {longest:.0f} s",
                f"end that process (fuser '{part}' names it), and start again",
            )


def make_room(settings: FetchSettings, path: Path, keep: Collection[Path] = ()) -> bool:
    """Remove files of the folder, those first that were used longest ago, until the file `path` fits; says if it does.

    What any process has mapped or is fetching stays, and so do the files of `keep`. Sizes are those in the names, so
    that a file in the making counts with all that it will take. Raises UserError where the folder stays locked.
    """
    folder = path.parent
    with _locked(folder / ".lock", settings.timeout_seconds):
        used: list[tuple[float, Path]] = []
        total = _size(path)
        for item in os.scandir(folder):
            found = Path(item.path)
            if found.suffix not in (".whole", ".part") or found.stem == path.stem:
                continue
            try:
                used.append((item.stat().st_mtime, found))
            except FileNotFoundError:
                continue
            total += _size(found)
        for _, found in sorted(used):
            if total <= settings.cache_bytes:
                break
            if found not in keep and _remove(found):
                total -= _size(found)
        return total <= settings.cache_bytes


def _size(path: Path) -> int:
    return int(path.stem.rsplit("-", 1)[1])


def _remove(path: Path) -> bool:
    """Remove a file unless a process uses or fetches it; says if it is gone."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(descriptor, path):
            path.unlink()
        return True
    except BlockingIOError:
        return False
    finally:
        _unlock(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


@contextmanager
def _locked(path: Path, seconds: float) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    deadline = time.monotonic() + seconds
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise UserError(
                        f"data.cache: '{path}' has been locked by another process for {seconds:g} s, longer than "
                        f"any does that is alive; end that process (fuser '{path}' names it), or take another folder"
                    ) from error
                time.sleep(_POLL_SECONDS / 5)
        yield
    finally:
        _unlock(descriptor)


def _unlock(descriptor: int) -> None:
    """Unlock by name and close: a process forked meanwhile has a copy of the descriptor that would keep the lock."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)
