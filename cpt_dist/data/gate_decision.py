"""The ledger's entry for a gate: what was found at a stage's end, and what followed from it.

No sample depends on a gate that let the run go on. One that forked the run has taken the stage out of the plan: from
the entry's `back_to` on the samples are those of other stages. Decisions are made in `cpt_dist/training`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from cpt_dist.data.skip import Skip

PASS, FAIL, UNDECIDED = "pass", "fail", "undecided"


@dataclass(frozen=True)
class GateDecision:
    """A stage's gate, decided once."""

    kind: ClassVar[str] = "gate"

    n_start: int
    """Number of samples before the stage's end, where it was measured."""
    stage: str
    verdict: str
    """pass, fail or undecided."""
    action: str
    """continue, stop or fork."""
    reason: str = ""
    """What was found, in a sentence."""
    evidence: dict[str, Any] = field(default_factory=dict)
    """The measurements behind the decision, as JSON; of a fork also the entries of the branch that was given up."""
    back_to: int | None = None
    """fork: first sample that belongs to the new branch, the stage's own first one."""
    fork_to: str | None = None
    """fork: name in `alternatives` of the stages that follow; null: the stage is left out."""


def standing_decision(entries: Iterable[Any], stage: str) -> GateDecision | None:
    """The newest verdict about `stage` that still holds; None where there is none.

    A rewind (`skip.WINDOW`) to a sample before the stage's end undoes it: what was measured is trained once more, with
    other weights.
    """
    found = None
    for entry in entries:
        if isinstance(entry, GateDecision) and entry.stage == stage:
            found = entry
        elif isinstance(entry, Skip) and found is not None and entry.back_to is not None:
            found = found if entry.back_to >= found.n_start else None
    return found


def forks(entries: Iterable[Any]) -> list[GateDecision]:
    """The decisions that changed the plan, in their order."""
    return [entry for entry in entries if isinstance(entry, GateDecision) and entry.back_to is not None]
