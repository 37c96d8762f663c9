"""Tensors from wherever they lie to the safetensors files of a Hugging Face model, by several processes.

Each worker converts and writes a run of tensors at their places in the files, block by block, then reads every
tensor back and compares it with the checksum of what the source gave. A file is flushed, renamed and noted in a
journal when all of it has passed, so an export that was killed goes on where it was. What is exported, and whether
the model makes sense, is decided elsewhere.
"""

from __future__ import annotations

import ctypes
import fnmatch
import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import xxhash

from cpt_dist.checkpoint.element_types import FLOAT32, ElementType, converted
from cpt_dist.checkpoint.read_check import CheckedFiles
from cpt_dist.checkpoint.safetensors_stream import FileLayout, TensorSpec, lay_out
from cpt_dist.checkpoint.tensor_source import Files, Piece, TensorSource
from cpt_dist.errors import UserError
from cpt_dist.files import begin_flush, fingerprint, stored_checksum, sync_folder, write_json

Reading = Callable[[Iterable[Piece]], CheckedFiles]
"""Files in which pieces can be read that are compared meanwhile with what they were when they were written."""
JOURNAL = "journal.jsonl"
_PART_BYTES = 1 << 27
"""The most that a worker takes at a time."""
_PARTS_PER_WORKER = 4
"""As many at least, to keep all busy to the end."""
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


class WorkerKilledError(UserError):
    """An export was interrupted; what it has finished is kept."""


@dataclass(frozen=True)
class DtypePolicy:
    """In which type each tensor is written."""

    dtype: ElementType
    fp32_names: tuple[str, ...] = ()
    """Patterns, as of the shell, of tensors that are written in fp32 whatever `dtype` is."""

    def of(self, source: TensorSource) -> ElementType:
        """The type of a tensor in the written file; integers and booleans stay what they are."""
        if not source.dtype.is_floating_point:
            return source.dtype
        kept = any(fnmatch.fnmatchcase(source.name, pattern) for pattern in self.fp32_names)
        return FLOAT32 if kept else self.dtype


@dataclass
class Written:
    """What an export wrote."""

    files: list[FileLayout]
    checksums: dict[str, str]
    """Tensor -> xxh3-64 of its values in the written type, the same from the source and from the file."""
    kept_files: list[str]
    """Files of an earlier, interrupted export that were found whole."""
    peak_bytes: int
    """Most memory of this process and its workers together (proportional set sizes, taken after each part)."""

    @property
    def specs(self) -> list[TensorSpec]:
        """All tensors."""
        return [spec for layout in self.files for spec in layout.specs]


@dataclass
class _Job:
    sources: dict[str, TensorSource]
    files: list[FileLayout]
    folder: Path
    reading: Reading | None


_job: _Job | None = None
"""What the workers find when they are forked; set for the time of an export."""


def export_weights(
    sources: dict[str, TensorSource],
    folder: Path,
    policy: DtypePolicy,
    max_file_bytes: int,
    workers: int,
    identity: Any,
    reading: Reading | None = None,
    when_started: Callable[[], None] = lambda: None,
) -> Written:
    """Write `sources` into safetensors files (and their index, where there are several) in `folder`.

    `identity`, a JSON value, tells this export from one of other values: files that an export of the same identity
    left whole in `folder` are kept. `reading` is called, in a worker, with the pieces that are read next, and
    `when_started` here, once the workers are forked and `folder` is cleared of what isn't kept. Raises UserError where
    one of these does, where a source is not whole, or where a written tensor reads back as another one.
    """
    global _job
    for source in sources.values():
        source.check_whole()  # before a file of its size is made
    specs = [TensorSpec(name, source.shape, policy.of(source)) for name, source in sorted(sources.items())]
    files = lay_out(specs, max_file_bytes)
    journal = _Journal(folder, fingerprint([identity, [layout.header.decode("latin-1") for layout in files]]))
    _job = _Job(sources, files, folder, reading)
    context = multiprocessing.get_context("fork")  # a worker shares all memory and starts at once
    try:
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
            try:
                # The first task forks all workers, so that `when_started` may start threads.
                pool.submit(os.getpid).result()
                when_started()
                return _Export(pool, workers, files, journal, folder).run()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
    except BrokenProcessPool as error:
        raise WorkerKilledError(
            f"a worker that wrote {folder} was killed, perhaps for want of memory; start again with fewer workers: "
            "files that are finished are kept"
        ) from error
    finally:
        _job = None


def _start_worker() -> None:
    # A worker must not go on writing after this process was killed.
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@dataclass
class _Export:
    pool: ProcessPoolExecutor
    workers: int
    files: list[FileLayout]
    journal: _Journal
    folder: Path
    checksums: dict[str, str] = field(default_factory=dict)
    memory: dict[int, int] = field(default_factory=dict)

    def run(self) -> Written:
        noted = {layout.name: index for index, layout in enumerate(self.files) if layout.name in self.journal.entries}
        checked = {
            name: self.pool.submit(_check_file, index, self.journal.entries[name]) for name, index in noted.items()
        }
        kept = [name for name, future in checked.items() if future.result()]
        for name in kept:
            self.checksums |= self.journal.entries[name]
        self._write([index for index, layout in enumerate(self.files) if layout.name not in kept])
        if len(self.files) > 1:
            _write_index(self.folder, self.files)
        self.memory[os.getpid()] = max(self.memory.get(os.getpid(), 0), _memory())
        return Written(self.files, self.checksums, kept, sum(self.memory.values()))

    def _write(self, indices: list[int]) -> None:
        parts: dict[Future[tuple[dict[str, str], int, int]], int] = {}
        left: dict[int, int] = {}
        total = sum(spec.num_bytes for index in indices for spec in self.files[index].specs)
        part_bytes = min(_PART_BYTES, total // (self.workers * _PARTS_PER_WORKER))
        for index in indices:
            layout = self.files[index]
            with open(_unfinished(self.folder, layout), "wb") as handle:
                handle.write(layout.header)
                handle.truncate(layout.offsets[-1])
            for first, last in _parts(layout, part_bytes):
                parts[self.pool.submit(_write_part, index, first, last)] = index
                left[index] = left.get(index, 0) + 1
        finished: dict[int, dict[str, str]] = {index: {} for index in indices}
        for future in as_completed(parts):
            index = parts[future]
            sums, pid, memory = future.result()
            finished[index] |= sums
            left[index] -= 1
            self.memory[pid] = max(self.memory.get(pid, 0), memory)
            self.memory[os.getpid()] = max(self.memory.get(os.getpid(), 0), _memory())
            if left[index] == 0:
                self._finish(self.files[index], finished.pop(index))

    def _finish(self, layout: FileLayout, sums: dict[str, str]) -> None:
        unfinished = _unfinished(self.folder, layout)
        with open(unfinished, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(unfinished, self.folder / layout.name)
        sync_folder(self.folder)
        self.journal.add(layout.name, sums)
        self.checksums |= sums


def _parts(layout: FileLayout, part_bytes: int) -> list[tuple[int, int]]:
    """Runs [first, last) of a file's tensors, each of at most `part_bytes` where a tensor isn't larger."""
    borders, size = [0], 0
    for number, spec in enumerate(layout.specs):
        if size and size + spec.num_bytes > part_bytes:
            borders.append(number)
            size = 0
        size += spec.num_bytes
    return list(zip(borders, [*borders[1:], len(layout.specs)], strict=True))


def _unfinished(folder: Path, layout: FileLayout) -> Path:
    return folder / f".{layout.name}.unfinished"


def _memory() -> int:
    return int(psutil.Process().memory_full_info().pss)


def _write_part(index: int, first: int, last: int) -> tuple[dict[str, str], int, int]:
    """Write tensors [first, last) of a file; their checksums, and this process and its memory."""
    assert _job is not None
    layout, sums = _job.files[index], {}
    sources = {number: _job.sources[layout.specs[number].name] for number in range(first, last)}
    reading = _job.reading(piece for source in sources.values() for piece in source.pieces) if _job.reading else Files()
    with reading as files, open(_unfinished(_job.folder, layout), "r+b", buffering=0) as handle:
        try:
            # In the order in which they lie in the checkpoint.
            for number in sorted(sources, key=lambda number: _place(sources[number])):
                spec, at = layout.specs[number], layout.offsets[number]
                sums[spec.name] = _write_tensor(handle.fileno(), at, sources[number], spec, files)
                begin_flush(handle.fileno(), at, spec.num_bytes)
        finally:
            # A damaged block is the better explanation of a tensor that can't be read.
            if isinstance(files, CheckedFiles):
                files.check()
        for number in range(first, last):
            spec = layout.specs[number]
            found = stored_checksum(handle.fileno(), layout.offsets[number], spec.num_bytes)
            if found != sums[spec.name]:
                raise UserError(
                    f"{_job.folder}: tensor '{spec.name}' reads back with checksum {found}, written was "
                    f"{sums[spec.name]}; check the disk and start again"
                )
    return sums, os.getpid(), _memory()


def _place(source: TensorSource) -> tuple[str, int]:
    first = min(source.pieces, key=lambda piece: piece.offsets, default=None)
    return (str(first.path), first.offset) if first is not None else ("", 0)


def _write_tensor(descriptor: int, offset: int, source: TensorSource, spec: TensorSpec, files: Files) -> str:
    digest, at = xxhash.xxh3_64(), offset
    for block in source.blocks(files):
        data = memoryview(converted(block, source.dtype, spec.dtype).data).cast("B")
        digest.update(data)
        while len(data):
            count = os.pwrite(descriptor, data, at)
            data, at = data[count:], at + count
    if at - offset != spec.num_bytes:
        raise UserError(f"tensor '{spec.name}' gave {at - offset} of {spec.num_bytes} bytes; use another checkpoint")
    return digest.hexdigest()


def _check_file(index: int, sums: dict[str, str]) -> bool:
    """Whether a finished file is what the journal says."""
    assert _job is not None
    layout = _job.files[index]
    path = _job.folder / layout.name
    if not path.is_file() or path.stat().st_size != layout.offsets[-1] or {s.name for s in layout.specs} != set(sums):
        return False
    with open(path, "rb", buffering=0) as handle:
        if handle.read(len(layout.header)) != layout.header:
            return False
        places = zip(layout.specs, layout.offsets, strict=False)
        return all(stored_checksum(handle.fileno(), at, s.num_bytes) == sums[s.name] for s, at in places)


def _write_index(folder: Path, files: list[FileLayout]) -> None:
    total = sum(spec.num_bytes for layout in files for spec in layout.specs)
    weight_map = {spec.name: layout.name for layout in files for spec in layout.specs}
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


class _Journal:
    """The finished files of an export and the checksums of their tensors, a line each, after a line of identity."""

    def __init__(self, folder: Path, identity: str) -> None:
        self._path = folder / JOURNAL
        self.entries: dict[str, dict[str, str]] = {}
        lines = self._path.read_text(encoding="utf-8").split("\n") if self._path.is_file() else []
        if lines and lines[0] == json.dumps({"identity": identity}):
            # What follows the last newline is a line that a kill has torn.
            for line in lines[1:-1]:
                entry = json.loads(line)
                self.entries[entry["file"]] = entry["tensors"]
            with open(self._path, "r+b") as handle:
                handle.truncate(sum(len(line.encode()) + 1 for line in lines[:-1]))
        else:
            for path in folder.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            self._append({"identity": identity})
            sync_folder(folder)

    def add(self, file: str, tensors: dict[str, str]) -> None:
        """Note a finished file."""
        self._append({"file": file, "tensors": tensors})

    def _append(self, value: dict[str, Any]) -> None:
        with open(self._path, "ab") as handle:
            handle.write((json.dumps(value) + "\n").encode())
            handle.flush()
            os.fsync(handle.fileno())
