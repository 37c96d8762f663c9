"""The schema of a gate at a stage's end, and the checks that need nothing but its values.

It is a part of `cpt_dist.config` in a file of its own. How a gate is measured and decided is in `cpt_dist/training`.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field

from cpt_dist.errors import nearest

HELD_OUT = "held_out"
MEASUREMENTS = {HELD_OUT: "bits per byte of held-out text, by source, and macro, their mean"}
"""Name of each measurement that a gate knows -> what it gives; `training/gate_measurements.py` makes them."""
MACRO = "macro"
BASE, RUN_START, STAGE_START = "base", "run_start", "stage_start"
AGAINST = (BASE, RUN_START, STAGE_START)
STOP, CONTINUE, FORK = "stop", "continue", "fork"
ACTIONS = (STOP, CONTINUE, FORK)


@dataclass
class GateConfig:
    """What must hold at the end of a stage."""

    margins: dict[str, dict[str, float]] = field(default_factory=dict)
    """Measurement -> what of it -> by how much it may be worse, in its unit: {held_out: {web: 0.01, macro: 0.02}} in
    bits per byte of a source's held-out text, or of macro, the mean over sources. 0 asks for no loss at all, a negative
    margin for a gain."""
    against: str = STAGE_START
    """What it is compared with, paired by document: base (the model of model.path), run_start (what this run_dir began
    with: the base model, or the checkpoint that it was forked from) or stage_start (the end of the stage before)."""
    on_fail: str = STOP
    """It is worse by more than a margin, and the whole confidence interval says so: stop (exit code 2, with everything
    saved), continue (it is on record), or fork (the stage is undone and `fork_to` follows)."""
    on_undecided: str = STOP
    """The confidence interval holds the margin: stop, continue or fork."""
    fork_to: str | None = None
    """fork: name of the list in `alternatives` that takes the place of this stage and all after it; null: the stage is
    left out, and those after it follow."""


def gate_problems(gate: GateConfig, sources: Collection[str], alternatives: Collection[str]) -> list[str]:
    """What is wrong with `gate` whatever the stage is; each problem begins with the name of the field."""
    problems = []
    if not any(gate.margins.values()):
        problems.append("margins: the gate names no evaluation; write {held_out: {macro: 0.01}}")
    for measurement, margins in gate.margins.items():
        if measurement not in MEASUREMENTS:
            problems.append(
                f"margins: '{measurement}' is no evaluation that a gate knows; {nearest(measurement, MEASUREMENTS)}"
            )
        known = (*sources, MACRO)
        for name, margin in margins.items():
            if measurement == HELD_OUT and name not in known:
                problems.append(f"margins.{HELD_OUT}: '{name}' is neither a source nor macro; {nearest(name, known)}")
            if not math.isfinite(margin):
                problems.append(f"margins.{measurement}.{name}: {margin} must be finite")
    for name, allowed in (("against", AGAINST), ("on_fail", ACTIONS), ("on_undecided", ACTIONS)):
        value = getattr(gate, name)
        if value not in allowed:
            problems.append(f"{name}: '{value}' is unknown; {nearest(value, allowed)} (one of {', '.join(allowed)})")
    if gate.fork_to is not None:
        if FORK not in (gate.on_fail, gate.on_undecided):
            problems.append(f"fork_to: '{gate.fork_to}' is read with on_fail or on_undecided = fork; take it out")
        if gate.fork_to not in alternatives:
            problems.append(f"fork_to: '{gate.fork_to}' is not in alternatives; {nearest(gate.fork_to, alternatives)}")
    return problems


def may_fork(gate: GateConfig | None) -> bool:
    """Whether the plan may change at the gate."""
    return gate is not None and FORK in (gate.on_fail, gate.on_undecided)
