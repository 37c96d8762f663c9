"""Out-of-bounds accesses and races of a kernel, found in Triton's interpreter.

The interpreter runs one program after another on ordinary memory, so a store past the end of a tensor writes somewhere
unseen, and programs that would race on a GPU give the right numbers. Here every address that a launch reads or writes
is compared with the elements of the tensors that it was given, and noted with the program that used it. An access
outside is counted and not made.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch


@dataclass
class Report:
    """What was found, added up over all launches."""

    launches: int = 0
    out_of_bounds: int = 0
    """Accesses to an address that is no element of a tensor of the launch."""
    races: int = 0
    """Addresses that one program writes and another one reads or writes, or that one store writes twice."""
    atomics: int = 0
    """Atomic operations: their order, and so the sum, differs from run to run."""
    found_in: set[str] = field(default_factory=set)
    """Names of the kernels concerned."""

    @property
    def total(self) -> int:
        return self.out_of_bounds + self.races + self.atomics


def element_addresses(tensor: torch.Tensor) -> np.ndarray:
    """uint64, sorted: the address of every element of a strided tensor."""
    offsets = np.zeros(1, dtype=np.int64)
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        offsets = (offsets[:, None] + np.arange(size, dtype=np.int64) * stride).ravel()
    return np.unique(np.uint64(tensor.data_ptr()) + (offsets * tensor.element_size()).astype(np.uint64))


class _Launch:
    """The accesses of one launch."""

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        known = [element_addresses(tensor) for tensor in tensors if tensor.numel()]
        self._known = np.unique(np.concatenate(known)) if known else np.empty(0, np.uint64)
        self.program = 0
        self.out_of_bounds = 0
        self._doubled = 0
        self._read: list[tuple[np.ndarray, int]] = []
        self._written: list[tuple[np.ndarray, int]] = []

    def note(self, addresses: np.ndarray, store: bool) -> np.ndarray:
        """Record the accesses of one load or store; gives which of them are inside."""
        place = np.searchsorted(self._known, addresses)
        inside = place < len(self._known)
        inside[inside] = self._known[place[inside]] == addresses[inside]
        self.out_of_bounds += int((~inside).sum())
        unique = np.unique(addresses)
        if store:
            self._doubled += len(addresses) - len(unique)
        (self._written if store else self._read).append((unique, self.program))
        return inside

    def races(self) -> int:
        written, by = _joined(self._written)
        if not len(written):
            return self._doubled
        order = np.lexsort((by, written))
        written, by = written[order], by[order]
        again = (written[1:] == written[:-1]) & (by[1:] != by[:-1])
        racing = set(written[1:][again].tolist())
        read, reader = _joined(self._read)
        first = np.searchsorted(written, read)
        hit = first < len(written)
        hit[hit] = written[first[hit]] == read[hit]
        other = by[first[hit]] != reader[hit]
        return len(racing | set(read[hit][other].tolist())) + self._doubled


def _joined(parts: list[tuple[np.ndarray, int]]) -> tuple[np.ndarray, np.ndarray]:
    if not parts:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    addresses = np.concatenate([part for part, _ in parts])
    return addresses, np.concatenate([np.full(len(part), program, np.int64) for part, program in parts])


@contextmanager
def sanitized() -> Iterator[Report]:
    """Watch every launch of an interpreted kernel; the report is whole at the end. Not to be nested."""
    from triton.runtime import interpreter

    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    names = ("create_masked_load", "create_masked_store", "set_grid_idx", "create_atomic_cas", "create_atomic_rmw")
    originals = {name: getattr(builder, name) for name in names}
    call = executor.__call__
    report = Report()
    current: list[_Launch] = []

    def allowed(pointers: Any, mask: Any, store: bool) -> Any:
        places, used = np.broadcast_arrays(pointers.data, mask.data)
        used = used.astype(bool)
        used[used] = current[-1].note(places[used].astype(np.uint64).ravel(), store)
        return interpreter.TensorHandle(used, mask.dtype)

    def load(self: Any, pointers: Any, mask: Any, *others: Any, **named: Any) -> Any:
        inside = allowed(pointers, mask, store=False)
        return originals["create_masked_load"](self, pointers, inside, *others, **named)

    def store(self: Any, pointers: Any, value: Any, mask: Any, *others: Any, **named: Any) -> Any:
        inside = allowed(pointers, mask, store=True)
        return originals["create_masked_store"](self, pointers, value, inside, *others, **named)

    def set_grid_idx(self: Any, x: int, y: int, z: int) -> None:
        _, height, depth = self.grid_dim
        current[-1].program = (x * height + y) * depth + z
        originals["set_grid_idx"](self, x, y, z)

    def atomic(name: str) -> Any:
        def counted(self: Any, *arguments: Any) -> Any:
            report.atomics += 1
            return originals[name](self, *arguments)

        return counted

    def launch(self: Any, *arguments: Any, **named: Any) -> Any:
        tensors = [one for one in (*arguments, *named.values()) if isinstance(one, torch.Tensor)]
        current.append(_Launch(tensors))
        before = report.atomics
        try:
            return call(self, *arguments, **named)
        finally:
            done = current.pop()
            races = done.races()
            report.launches += 1
            report.out_of_bounds += done.out_of_bounds
            report.races += races
            if done.out_of_bounds or races or report.atomics > before:
                report.found_in.add(self.fn.__name__)

    builder.create_masked_load, builder.create_masked_store, builder.set_grid_idx = load, store, set_grid_idx
    builder.create_atomic_cas, builder.create_atomic_rmw = atomic("create_atomic_cas"), atomic("create_atomic_rmw")
    executor.__call__ = launch
    try:
        yield report
    finally:
        for name, original in originals.items():
            setattr(builder, name, original)
        executor.__call__ = call
