"""Which lists of stages a run can come to: the configured one, and those that a gate's fork leads to.

A fork takes a stage out of the plan and puts another end in its place. All plans are known before the run, so all of
them are checked before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cpt_dist.config import AlternativeConfig, CptConfig, StageConfig
from cpt_dist.errors import UserError
from cpt_dist.gate_config import may_fork


def forked(
    stages: Sequence[StageConfig], stage: str, fork_to: str | None, alternatives: Mapping[str, AlternativeConfig]
) -> list[StageConfig]:
    """The plan after the gate of `stage` has forked it; `stages` themselves where the stage isn't among them.

    Raises UserError where `fork_to` is no list of `alternatives`.
    """
    names = [one.name for one in stages]
    if stage not in names:
        return list(stages)
    if fork_to is not None and fork_to not in alternatives:
        raise UserError(
            f"ledger.jsonl: the run went on with alternatives.{fork_to} after stage '{stage}'; put it back to go on"
        )
    before = list(stages[: names.index(stage)])
    return before + list(stages[len(before) + 1 :] if fork_to is None else alternatives[fork_to].stages)


def all_stages(config: CptConfig) -> list[StageConfig]:
    """Every stage that is written down."""
    return [*config.stages, *(stage for other in config.alternatives.values() for stage in other.stages)]


def all_plans(config: CptConfig) -> dict[str, list[StageConfig]]:
    """Words that say how the run comes to it -> each plan that it can come to, the configured one first."""
    plans = {"": list(config.stages)}
    seen = [[stage.name for stage in config.stages]]
    waiting = list(plans.items())
    while waiting:
        path, stages = waiting.pop(0)
        for stage in stages:
            if stage.gate is None or not may_fork(stage.gate):
                continue
            if stage.gate.fork_to is not None and stage.gate.fork_to not in config.alternatives:
                continue  # the gate's own check says so
            other = forked(stages, stage.name, stage.gate.fork_to, config.alternatives)
            names = [one.name for one in other]
            if names not in seen and other:
                seen.append(names)
                where = f"{path}after a fork at stage '{stage.name}': "
                plans[where] = other
                waiting.append((where, other))
    return plans
