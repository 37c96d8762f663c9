"""Schema of the group `verdict`: what is declared before anybody looks at a result."""

from __future__ import annotations

from dataclasses import dataclass, field


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
    """Source, or suite that is a goal -> its own least gain or most loss, instead of the two above."""
    goals: list[str] = field(default_factory=list)
    """Suites of `suites.run`, by name, that have to gain, in points; the others have to be kept within their margin."""
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
    return problems
