"""A bounded folder of files fetched from URLs, shared by all processes of a host.

A file in it is whole, and every block of it agreed with the manifest; its name is a hash of those checksums, so the
same shard under another URL or in a source that has grown is fetched once. It decides nothing about what is read when.
Processes agree through names and file locks alone: a rename completes a file, and a lock ends with its process, so a
killed one leaves behind nothing but a beginning that the next one goes on with.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import xxhash

from cpt_dist.config import DataConfig
from cpt_dist.data.remote import FetchSettings, LastingError, PassingError, Persistence, RemoteFolder
from cpt_dist.errors import UserError
from cpt_dist.files import fingerprint, sync_folder

_CHUNK_BYTES = 8 << 20
"""Asked for at one time: large beside a request's latency, small beside what a failed one costs."""

_POLL_SECONDS = 0.05

_mapped: weakref.WeakValueDictionary[Path, mmap.mmap] = weakref.WeakValueDictionary()
"""Files that something in this process has mapped at present; they are never removed by it."""


def file_entry(entry: dict[str, Any]) -> dict[str, Any]:
    """A manifest entry with the checksum of the whole file (held-out documents) as one of a single block."""
    if "blocks" in entry:
        return entry
    return {**entry, "block_bytes": max(1, entry["bytes"]), "blocks": [entry["xxh3"]] if entry["bytes"] else []}


class CachedFile:
    """A file behind a URL, with its entry in the manifest ("file", "bytes", "block_bytes", "blocks")."""

    def __init__(self, folder: RemoteFolder, entry: dict[str, Any], source: str) -> None:
        self.entry = file_entry(entry)
        self.settings = folder.settings
        self._remote = folder / entry["file"]
        self._source = source
        key = fingerprint({"bytes": entry["bytes"], "blocks": self.entry["blocks"]})
        # The size is in the name, so that a file in the making counts with all that it will take.
        self.path = self.settings.cache.expanduser() / f"{key}-{entry['bytes']}.whole"
        self._part = self.path.with_suffix(".part")

    def refuse(self, what: str, fix: str = "put the right file there, or prepare the source again") -> UserError:
        """A UserError that names source, URL and `what` is wrong."""
        return UserError(f"source '{self._source}': '{self._remote}' {what}; {fix}")

    def descriptor(self) -> int:
        """A descriptor of the whole file, open for reading; it is fetched first where it isn't there.

        Stays readable after the file was removed from the folder. Raises UserError where it can't be had.
        """
        waited_since = time.monotonic()
        while True:
            found = self._open_whole()
            if found is not None:
                return found
            with self._own_part() as part:
                if part is None:  # another process is at it; it lives, or its lock would be gone
                    waited_since = time.monotonic()
                elif make_room(self.settings, self.path):
                    self._fetch(part)
                    continue
                elif time.monotonic() - waited_since > self.settings.timeout_seconds:
                    raise self.refuse(
                        f"has {self.entry['bytes']} bytes, but the {self.settings.cache_bytes} bytes of "
                        f"'{self.path.parent}' are full of what is in use",
                        "raise data.cache_bytes, or lower data.shuffle_window_shards or data.prefetch_shards",
                    )
            time.sleep(_POLL_SECONDS)

    def map(self) -> mmap.mmap:
        """The file's content, mapped. Raises UserError as `descriptor` does."""
        mapped = _mapped.get(self.path)
        if mapped is None:
            descriptor = self.descriptor()
            try:
                mapped = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
            finally:
                os.close(descriptor)
            _mapped[self.path] = mapped
        return mapped

    def prefetch(self) -> bool:
        """Fetch the file if it isn't there, unless another process is at it or there is no room; True if fetched."""
        if self.path.exists():
            return False
        with self._own_part() as part:
            if part is None or self.path.exists() or not make_room(self.settings, self.path):
                return False
            self._fetch(part)
            return True

    def forget(self) -> None:
        """Remove the file from the folder (its copy there is damaged)."""
        self.path.unlink(missing_ok=True)
        _mapped.pop(self.path, None)

    def _open_whole(self) -> int | None:
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        if os.fstat(descriptor).st_size != self.entry["bytes"]:
            os.close(descriptor)
            self.forget()
            return None
        with suppress(FileNotFoundError):  # evicted in between; the descriptor keeps it readable
            os.utime(self.path)  # last use, for the eviction
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
        at = self._agreeing_bytes(part)
        os.ftruncate(part, at)
        attempts = Persistence(self.settings)
        while at < size:
            stop = min(size, at + max(block_bytes, _CHUNK_BYTES // block_bytes * block_bytes))
            try:
                content = self._remote.read(at, stop)
            except LastingError as error:
                raise self.refuse(f"block {at // block_bytes} cannot be fetched: {error}") from error
            except PassingError as error:
                failure = f"cannot be fetched: {error}"
            else:
                if len(content) == size and at:  # a server that knows no ranges
                    content = content[at:]
                good, failure = self._check(at, content, stop)
                if good:
                    os.pwrite(part, memoryview(content)[:good], at)
                    at += good
                    attempts = Persistence(self.settings)
            if failure and not attempts.again():
                raise self.refuse(
                    f"block {at // block_bytes} {failure} ({attempts.count} attempts)",
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

    def _agreeing_bytes(self, part: int) -> int:
        """Length of the beginning of a file in the making whose blocks agree: no record of them could be truer."""
        at = 0
        while block := os.pread(part, self.entry["block_bytes"], at):
            number = at // self.entry["block_bytes"]
            blocks = self.entry["blocks"]
            if number >= len(blocks) or xxhash.xxh3_64_hexdigest(block) != blocks[number]:
                break
            at += len(block)
        return at


def check_cache_holds(data: DataConfig, sources: Mapping[str, Sequence[CachedFile]]) -> None:
    """Refuse a cache too small for the shards that are drawn from at one time: each would be fetched for every row.

    `sources` is name -> its files behind a URL. Raises UserError that names the sizes which would do.
    """
    settings = FetchSettings.of(data)
    sizes = {name: sorted((f.entry["bytes"] for f in files), reverse=True) for name, files in sources.items()}
    window = data.shuffle_window_shards
    at_a_time = window + data.prefetch_shards if window else None
    needed = sum(sum(largest[:at_a_time]) for largest in sizes.values())
    if needed > settings.cache_bytes:
        largest = ", ".join(f"{name} {sum(of[:at_a_time])}" for name, of in sizes.items() if of)
        what = f"{window} shards a window and {data.prefetch_shards} ahead" if window else "all of a source's shards"
        fix = (
            "lower data.shuffle_window_shards or data.prefetch_shards"
            if window
            else "set data.shuffle_window_shards=8 to draw from 8 shards of each at a time"
        )
        raise UserError(
            f"data.cache_bytes: {settings.cache_bytes} bytes hold less than rows are drawn from at a time, {needed} "
            f"bytes ({what}: {largest}); raise it to {needed} or more, or {fix}"
        )


def make_room(settings: FetchSettings, path: Path) -> bool:
    """Remove files of the folder, those first that were used longest ago, until the file `path` fits; says if it does.

    What this process has mapped stays, and what any process is fetching. A file that another process has mapped may
    go: it stays readable there until it is let go. Sizes are those in the names.
    """
    folder = path.parent
    with _locked(folder / ".lock"):
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
            if found not in _mapped and _remove(found):
                total -= _size(found)
        return total <= settings.cache_bytes


def _size(path: Path) -> int:
    return int(path.stem.rsplit("-", 1)[1])


def _remove(path: Path) -> bool:
    """Remove a file unless it is in the making; says if it is gone."""
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
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        _unlock(descriptor)


def _unlock(descriptor: int) -> None:
    """Unlock by name and close: a worker forked meanwhile has a copy of the descriptor that would keep the lock."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)
