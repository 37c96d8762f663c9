"""The control arm of a configuration: the same tokens, schedule and seed, on the replay sources alone.

What it gains, it gains without the domain, as from the decay of the learning rate; docs/verdict.md says what it is held
against. Everything that would make it another training is taken out: curricula over sources, adaptive replay, gates,
retention budgets, distillation and caps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cpt_dist.config import CptConfig
from cpt_dist.errors import UserError
from cpt_dist.forgetting_config import REPLAY_ROLE, ForgettingConfig
from cpt_dist.nested_mixture import is_nested
from cpt_dist.replay_config import ReplayConfig


def control_arm(config: CptConfig) -> CptConfig:
    """The configuration of the control arm of a valid `config`; that of a control arm stays as it is.

    Each stage's replay sources keep their shares among each other; a stage that reads none takes all that there are, in
    equal parts. Domain sources get the share 0, so held-out text of theirs is still scored while training.

    Raises UserError where no source has the role replay, and where a stage is sized by epochs, which are the domain's.
    """
    replay = [name for name, source in config.data.sources.items() if source.role == REPLAY_ROLE]
    if not replay:
        raise UserError(
            "control_arm: no source of data.sources has role: replay; add general text, the control arm learns from it"
        )
    problems = [
        f"control_arm: stages.{number} ({stage.name}) is sized by epochs of the domain; give it the tokens that "
        f"launch/plan.py what=data prints: stages.{number}.epochs=null stages.{number}.tokens=…"
        for number, stage in enumerate(config.stages)
        if stage.epochs is not None
    ]
    if problems:
        raise UserError(problems)
    sources = {
        name: replace(source, max_epochs=None, on_cap="error", spill_to=None)
        for name, source in config.data.sources.items()
    }
    return replace(
        config,
        data=replace(config.data, sources=sources),
        stages=[
            replace(stage, mixture=_replay_alone(stage.mixture, replay), curriculum=None, gate=None)
            for stage in config.stages
        ],
        alternatives={},
        replay=ReplayConfig(),
        forgetting=ForgettingConfig(),
        distillation=None,
    )


def _replay_alone(mixture: Mapping[str, Any], replay: list[str]) -> dict[str, Any]:
    kept = {name: entry for name, entry in mixture.items() if name in replay}
    if not any(share > 0 for entry in kept.values() for share in _shares(entry)):
        kept = dict.fromkeys(replay, 1.0)
    return dict.fromkeys(mixture, 0.0) | kept


def _shares(entry: Any) -> list[float]:
    """The share, or those at all points, of a source's entry in a mixture."""
    share = entry.get("share", 1.0) if is_nested(entry) else entry
    return [float(value) for _, value in share] if isinstance(share, (list, tuple)) else [float(share)]
