"""What a check of a run says: the trouble, its evidence, and which key to change to which value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

FOUND, HEALTHY, NOT_ENOUGH = "found", "healthy", "not enough data"
SEVERE, WARNING = "severe", "warning"


@dataclass(frozen=True)
class Change:
    """A key of the configuration, its value in the newest start, the value to try, and why."""

    key: str
    now: Any
    to: Any
    why: str


@dataclass(frozen=True)
class Finding:
    """The answer of one check."""

    trouble: str
    status: str
    """found, healthy or not enough data."""
    evidence: tuple[str, ...] = ()
    """What was seen, with steps and numbers; where there is not enough data, what is missing."""
    severity: str = ""
    """Of what was found: severe or warning."""
    changes: tuple[Change, ...] = ()
    advice: tuple[str, ...] = ()
    """What to do that is no key of the configuration."""
    numbers: dict[str, Any] = field(default_factory=dict)
    """The measured values that were compared with a border."""


def healthy(trouble: str, *evidence: str, **numbers: Any) -> Finding:
    """The trouble isn't there."""
    return Finding(trouble, HEALTHY, evidence, numbers=numbers)


def not_enough(trouble: str, *missing: str) -> Finding:
    """The run directory can't say."""
    return Finding(trouble, NOT_ENOUGH, missing)
