"""The schema of a gate at a stage's end, and the checks that need nothing but its values.

It is a part of `cpt_dist.config` in a file of its own; what a measurement needs elsewhere in the configuration is
checked in `gate_validation.py`. How a gate is measured and decided is in `cpt_dist/training`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from cpt_dist.errors import nearest, nearest_of
from cpt_dist.long_context_config import TASKS

HELD_OUT, SUITES, POSITIONS, LONG_TASKS = "held_out", "suites", "positions", "long_tasks"
MEASUREMENTS = {
    HELD_OUT: "bits per byte of held-out text, by source, and macro, their mean",
    SUITES: "share of wrong answers to a suite of suites.run, by its name",
    POSITIONS: "nats per token of long documents, by bucket START-STOP of the tokens before",
    LONG_TASKS: "share of wrong choices in a synthetic long-context task, by TASK/LENGTH",
}
"""Name of each measurement that a gate knows -> what it gives; `training/gate_measurements.py` makes them."""
MACRO = "macro"
NON_INFERIOR = "non_inferior"
BASE, RUN_START, STAGE_START = "base", "run_start", "stage_start"
AGAINST = (BASE, RUN_START, STAGE_START)
STOP, CONTINUE, FORK = "stop", "continue", "fork"
ACTIONS = (STOP, CONTINUE, FORK)
_EXAMPLES = {
    HELD_OUT: "{macro: 0.01}",
    SUITES: "non_inferior, or {NAME: 0.02}",
    POSITIONS: "{8192-16384: 0.02}",
    LONG_TASKS: "{niah_single_2/16384: 0.2}",
}


@dataclass
class GateConfig:
    """What must hold at the end of a stage."""

    margins: dict[str, Any] = field(default_factory=dict)
    """Measurement -> what of it -> by how much it may be worse, in its unit: {held_out: {web: 0.01, macro: 0.02}} in
    bits per byte of a source's held-out text, or of macro, the mean over sources; {suites: {go_mc: 0.02}} in points of
    a suite of `suites.run` (0.02: 2 of 100 items), or {suites: non_inferior} for all of them, each within the margin
    that it declares; {positions: {8192-16384: 0.02}} in nats per token of long documents in a bucket of positions;
    {long_tasks: {niah_single_2/16384: 0.2}} in points of a synthetic task. 0 asks for no loss at all, a negative margin
    for a gain."""
    against: str = STAGE_START
    """What it is compared with, paired by document or item: base (the model of model.path), run_start (what this
    run_dir began with: the base model, or the checkpoint that it was forked from) or stage_start (the end of the stage
    before)."""
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
                f"margins: '{measurement}' is no evaluation that a gate knows; {nearest_of(measurement, MEASUREMENTS)}"
            )
        else:
            problems += _margin_problems(measurement, margins, sources)
    for name, allowed in (("against", AGAINST), ("on_fail", ACTIONS), ("on_undecided", ACTIONS)):
        value = getattr(gate, name)
        if value not in allowed:
            problems.append(f"{name}: '{value}' is unknown; {nearest_of(value, allowed)}")
    if gate.fork_to is not None:
        if FORK not in (gate.on_fail, gate.on_undecided):
            problems.append(f"fork_to: '{gate.fork_to}' is read with on_fail or on_undecided = fork; take it out")
        if gate.fork_to not in alternatives:
            problems.append(f"fork_to: '{gate.fork_to}' is not in alternatives; {nearest(gate.fork_to, alternatives)}")
    return problems


def _margin_problems(measurement: str, margins: Any, sources: Collection[str]) -> Iterator[str]:
    key = f"margins.{measurement}"
    if measurement == SUITES and margins == NON_INFERIOR:
        return
    if not isinstance(margins, Mapping):
        yield f"{key}: {margins!r} says nothing of what may be worse by how much; write {_EXAMPLES[measurement]}"
        return
    for name, margin in margins.items():
        if measurement == HELD_OUT and name not in (known := (*sources, MACRO)):
            yield f"{key}: '{name}' is neither a source nor macro; {nearest(name, known)}"
        elif measurement != HELD_OUT and name == MACRO:
            yield f"{key}: a mean would hide the one that fails; name each, such as {_EXAMPLES[measurement]}"
        elif measurement == POSITIONS and bucket(name) is None:
            yield f"{key}: '{name}' is no bucket of positions START-STOP that rises, such as 8192-16384"
        elif measurement == LONG_TASKS:
            task, _, length = str(name).partition("/")
            if task not in TASKS:
                yield f"{key}: there is no task '{task}'; {nearest_of(task, TASKS)}"
            if not re.fullmatch(r"[1-9]\d*", length):
                yield f"{key}: '{name}' lacks the tokens of its prompts; write {task}/16384"
        is_number = isinstance(margin, (int, float)) and not isinstance(margin, bool)
        if not (is_number and math.isfinite(margin)) and not (measurement == SUITES and margin == NON_INFERIOR):
            yield f"{key}.{name}: {margin!r} must be a finite number" + (
                f", or {NON_INFERIOR}" if measurement == SUITES else ""
            )


def bucket(name: str) -> tuple[int, int] | None:
    """(start, stop) of a bucket of positions START-STOP; None where it is none."""
    found = re.fullmatch(r"(\d+)-(\d+)", str(name))
    return (int(found[1]), int(found[2])) if found and int(found[1]) < int(found[2]) else None


def may_fork(gate: GateConfig | None) -> bool:
    """Whether the plan may change at the gate."""
    return gate is not None and FORK in (gate.on_fail, gate.on_undecided)
