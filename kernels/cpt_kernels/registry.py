"""Which implementation of an operation runs, and why.

An operation has named backends in order of preference; each says for a `Spec` whether it can run or why not. It is
not an autotuner: the choice depends on the request alone, is logged once, and can be listed for a run's records.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

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


@dataclass(frozen=True)
class Backend:
    """One implementation of an operation."""

    name: str
    supports: Callable[[Spec], str | None]
    """None where it can run the request, else the reason why not."""
    function: Callable[..., Any] = field(compare=False)


_backends: dict[str, list[Backend]] = {}
_chosen: dict[tuple[str, str, Spec], Backend] = {}


def register(operation: str, backend: Backend) -> None:
    """Add a backend; those registered first are preferred by `auto`. Raises ValueError if its name is taken."""
    known = _backends.setdefault(operation, [])
    if any(backend.name == other.name for other in known):
        raise ValueError(f"{operation}: a backend '{backend.name}' is registered already")
    known.append(backend)


def backends(operation: str) -> tuple[Backend, ...]:
    """The backends of an operation in order of preference; empty where the operation is unknown."""
    return tuple(_backends.get(operation, ()))


def choose(operation: str, wanted: str, spec: Spec) -> Backend:
    """The backend that runs `operation` for `spec`.

    `wanted` is a backend's name, which is taken or refused, never replaced; or auto, the first that supports `spec`.
    Raises KernelRefusedError with the reason, or with all reasons for auto.
    """
    key = (operation, wanted, spec)
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
        if reason is None:
            _chosen[key] = backend
            passed_over = "".join(f"; not {name}: {why}" for name, why in refusals.items())
            logger.info("%s on %s %s: %s%s", operation, spec.device, spec.dtype, backend.name, passed_over)
            return backend
        refusals[backend.name] = reason
    reasons = "; ".join(f"{name}: {why}" for name, why in refusals.items())
    raise KernelRefusedError(f"{operation} cannot run on {spec.device} in {spec.dtype}: {reasons}")


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
        for (operation, wanted, spec), backend in _chosen.items()
    ]
