"""The schema of the retention budget, and the checks that need nothing but its values.

It is a part of `cpt_dist.config` in a file of its own; `cpt_dist/training/retention_budget.py` says when a budget is
exceeded and what follows.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from cpt_dist.errors import nearest, nearest_of

WARN, RAISE_REPLAY, STOP = "warn", "raise_replay", "stop"
BUDGET_ACTIONS = (WARN, RAISE_REPLAY, STOP)
REPLAY_ROLE = "replay"


@dataclass
class ForgettingConfig:
    """How much may be forgotten while training, and what follows where it is more."""

    max_bpb_increase: Any = None
    """Accepted rise of held-out bits per byte over the start of the run: a number for each source with role replay, or
    source -> number, such as {web: 0.02}. Exceeded where the whole paired interval lies above it (docs/evaluation.md).
    null: no budget."""
    action: str = WARN
    """What follows: warn, raise_replay (adaptive replay raises the replay share by `replay.max_step`), or stop (a
    checkpoint, a line with the numbers, exit code 2)."""


def has_budget(forgetting: ForgettingConfig) -> bool:
    """Whether anything is asked for."""
    return forgetting.max_bpb_increase is not None


def budgets(forgetting: ForgettingConfig, roles: Mapping[str, str]) -> dict[str, float]:
    """Source -> accepted rise in bits per byte; `roles` are those of all sources."""
    asked = forgetting.max_bpb_increase
    if asked is None:
        return {}
    if isinstance(asked, Mapping):
        return {name: float(value) for name, value in asked.items()}
    return {name: float(asked) for name, role in roles.items() if role == REPLAY_ROLE}


def forgetting_problems(
    forgetting: ForgettingConfig,
    roles: Mapping[str, str],
    read: Collection[str],
    replay_rule: str,
    during_training: bool,
    on_the_way: bool,
) -> list[str]:
    """What is wrong with `forgetting`, one line each; `read` are the sources that some stage reads.

    `during_training` says whether held-out text is scored while training, `on_the_way` whether between start and end.
    """
    key, action = "forgetting.max_bpb_increase", forgetting.action
    problems = []
    if action not in BUDGET_ACTIONS:
        problems.append(f"forgetting.action: '{action}' is unknown; {nearest_of(action, BUDGET_ACTIONS)}")
    asked = forgetting.max_bpb_increase
    if asked is None:
        if action != WARN:
            problems.append(f"forgetting.action: '{action}' is read with {key} only; set that, such as 0.02")
        return problems
    values = dict(asked) if isinstance(asked, Mapping) else {"": asked}
    for name, value in values.items():
        where = f"{key}.{name}" if name else key
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            problems.append(f"{where}: {value!r} must be bits per byte, 0 or more, such as 0.02")
        if name and name not in roles:
            problems.append(f"{key}: '{name}' is not in data.sources; {nearest(name, roles)}")
        elif name and read and name not in read:
            problems.append(
                f"{key}: '{name}' is read by no stage, so nothing of it is scored; add {name}: 0 to a mixture, or take "
                "it out"
            )
        elif name and action == RAISE_REPLAY and roles[name] != REPLAY_ROLE:
            problems.append(
                f"{key}: '{name}' is a {roles[name]} source, which more replay doesn't bring back; give it role "
                "replay, take it out, or set forgetting.action=warn"
            )
    if isinstance(asked, Mapping) and not asked:
        problems.append(f"{key}: it names no source; write {{web: 0.02}}, or a number for all replay sources")
    if not isinstance(asked, Mapping) and roles and REPLAY_ROLE not in roles.values():
        problems.append(f"{key}: a number counts for replay sources, and there is none; write {{source: number}}")
    if not during_training:
        problems.append(f"{key}: nothing is scored while training; set evaluation.during_training=true")
    elif action != WARN and not on_the_way:
        problems.append(
            f"forgetting.action: '{action}' acts on evaluations before the end, and there are none; set "
            "evaluation.every_steps above 0, or evaluation.schedule=log"
        )
    if action == RAISE_REPLAY and replay_rule == "off":
        problems.append(
            "forgetting.action: 'raise_replay' goes through adaptive replay, and replay.rule is off; set "
            "replay.rule=bounded, or forgetting.action=warn"
        )
    return problems
