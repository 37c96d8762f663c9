"""Which implementation of an operation runs, and why.

An operation has named backends in order of preference; each says for a `Spec` whether it can run or why not. It is
not an autotuner: the choice depends on the request and the machine alone, is logged once, and can be listed for a run's
records.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

logger = logging.getLogger(__name__)


class KernelRefusedError(ValueError):
    """The wanted backend is unknown or cannot run the request; the message names the reason."""


@dataclass(frozen=True)
class Spec:
    """What a call asks for, as far as a backend's answer may depend on it."""

    device: str
    """Device type, such as cpu or cuda."""
    dtype: str
    """Type of the main input without its prefix, such as float32."""
    features: frozenset[str] = frozenset()
    """Optional behaviour that the call needs, such as softcap."""


def _nothing(spec: Spec) -> str | None:
    return None


@dataclass(frozen=True)
class Backend:
    """One implementation of an operation."""

    name: str
    supports: Callable[[Spec], str | None]
    """None where it can run the request, else the reason why not."""
    function: Callable[..., Any] = field(compare=False)
    on_request: Callable[[Spec], str | None] = field(default=_nothing, compare=False)
    """None where auto may take it, else the reason why it runs only if it is asked for by name."""
    vetted: Callable[[Spec], str | None] = field(default=_nothing, compare=False)
    """Asked last, once it would be taken: the reason why a trial on this device forbids it, or None."""


_backends: dict[str, list[Backend]] = {}
_chosen: dict[tuple[str, str, Spec, bool], Backend] = {}


def register(operation: str, backend: Backend) -> None:
    """Add a backend; those registered first are preferred by `auto`. Raises ValueError if its name is taken."""
    known = _backends.setdefault(operation, [])
    if any(backend.name == other.name for other in known):
        raise ValueError(f"{operation}: a backend '{backend.name}' is registered already")
    known.append(backend)


def operations() -> tuple[str, ...]:
    """The names of all operations, in the order in which they were registered."""
    return tuple(_backends)


def backends(operation: str) -> tuple[Backend, ...]:
    """The backends of an operation in order of preference; empty where the operation is unknown."""
    return tuple(_backends.get(operation, ()))


def spec_of(tensor: torch.Tensor, *features: str) -> Spec:
    """The request of a call whose main input is `tensor`; empty names among `features` count for nothing."""
    return Spec(tensor.device.type, str(tensor.dtype).removeprefix("torch."), frozenset(filter(None, features)))


def choose(operation: str, wanted: str, spec: Spec, strict: bool = True, record: bool = True) -> Backend:
    """The backend that runs `operation` for `spec`.

    `wanted` is auto, the first that supports `spec`, or a backend's name. A name is taken or refused; unless `strict`,
    where it is refused auto decides and a warning has the reason. Raises KernelRefusedError with the reason, or with
    all reasons for auto; an unknown name is always refused. Without `record` it is a question only: nothing is logged,
    and `chosen` does not list it.
    """
    if not record:
        with unrecorded():
            return choose(operation, wanted, spec, strict)
    key = (operation, wanted, spec, strict)
    if key in _chosen:
        return _chosen[key]
    known = backends(operation)
    candidates = [backend for backend in known if wanted in ("auto", backend.name)]
    if not candidates:
        names = ", ".join(backend.name for backend in known) or "none"
        raise KernelRefusedError(f"{operation}: there is no backend '{wanted}'; known: auto, {names}")
    refusals: dict[str, str] = {}
    for backend in candidates:
        reason = backend.supports(spec)
        if reason is None and wanted == "auto":
            reason = backend.on_request(spec)
        if reason is None:
            reason = backend.vetted(spec)
        if reason is None:
            _chosen[key] = backend
            passed_over = "".join(f"; not {name}: {why}" for name, why in refusals.items())
            logger.info("%s on %s %s: %s%s", operation, spec.device, spec.dtype, backend.name, passed_over)
            return backend
        refusals[backend.name] = reason
    reasons = "; ".join(f"{name}: {why}" for name, why in refusals.items())
    if wanted != "auto" and not strict:
        logger.warning("%s: the wanted backend is not taken: %s", operation, reasons)
        _chosen[key] = choose(operation, "auto", spec)
        return _chosen[key]
    raise KernelRefusedError(f"{operation} cannot run on {spec.device} in {spec.dtype}: {reasons}")


@contextmanager
def unrecorded() -> Iterator[None]:
    """What is chosen inside is no choice of the run: it is not logged, and forgotten afterwards."""
    before, level = dict(_chosen), logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        _chosen.clear()
        _chosen.update(before)


def chosen() -> list[dict[str, str]]:
    """Every choice made by this process so far, for the run's records: one plain dict each, in order."""
    return [
        {
            "operation": operation,
            "wanted": wanted,
            "backend": backend.name,
            "device": spec.device,
            "dtype": spec.dtype,
            "features": ",".join(sorted(spec.features)),
        }
        for (operation, wanted, spec, _), backend in _chosen.items()
    ]
