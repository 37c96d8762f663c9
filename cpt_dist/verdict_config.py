"""Schema of the group `verdict`: what is declared before anybody looks at a result."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class VerdictConfig:
    control: str | None = None
    """Folder of the control arm: the same base trained for as many tokens, with the same schedule, on replay alone.
    With it the adapted model must also beat this one, so that the decay of the learning rate isn't taken for the
    effect of the data."""
    least_gain: float = 0.0
    """Every domain source has to gain more than this, in bits per byte."""
    most_loss: float = 0.02
    """No replay source may lose this much, in bits per byte: the margin of non-inferiority."""
    margins: dict[str, float] = field(default_factory=dict)
    """Source, or suite or probe that is a goal -> its own least gain or most loss, instead of the two above."""
    goals: list[str] = field(default_factory=list)
    """Suites of `suites.run` and probes, by name, that have to gain, in points; the others have to be kept within their
    margin."""
    probe: Any = field(default_factory=list)
    """Results of launch/probe.py about these models: a probe.json or its folder, or a list of them."""
    averages: list[float] = field(default_factory=list)
    """Shares of the adapted model, such as [0.25, 0.5, 0.75]: its weights averaged with the base's in these shares are
    scored as well, for the picture of gain against forgetting."""
    out: str = "${run_dir}"
    """Folder of verdict.json, verdict.md and verdict.html."""


def verdict_problems(config: VerdictConfig) -> list[str]:
    """What is wrong with the group, a line each."""
    problems = [
        f"verdict.{key}: {value:g} must be at least 0; gains and tolerated losses are given without a sign"
        for key, value in {
            "least_gain": config.least_gain,
            "most_loss": config.most_loss,
            **{f"margins.{name}": margin for name, margin in config.margins.items()},
        }.items()
        if value < 0
    ]
    problems += [
        f"verdict.averages: {share:g} must lie between 0 (the base) and 1 (the adapted model)"
        for share in config.averages
        if not 0 < share < 1
    ]
    if not isinstance(config.probe, str) and not (
        isinstance(config.probe, list) and all(isinstance(one, str) for one in config.probe)
    ):
        problems.append(f"verdict.probe: {config.probe!r} is no path and no list of paths; write probe=[a.json,b.json]")
    return problems
