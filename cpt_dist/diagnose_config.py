"""The schema of launch/diagnose.py and the checks of its values.

It is a part of `cpt_dist.config` in a file of its own. What the values do is in docs/diagnosis.md; the thresholds and
their sources are in `cpt_dist/planning/adaptation.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cpt_dist.errors import nearest

NEEDS = ("unknown", "knowledge", "behaviour", "language")
PRIVACIES = ("unknown", "none", "removable", "per_reader")
THRESHOLDS = (
    "floor_tokens",
    "ample_tokens",
    "least_gain",
    "far_overlap",
    "near_overlap",
    "far_fertility",
    "near_fertility",
    "few_instructions",
    "enough_instructions",
    "live_days",
    "retrain_days",
    "rag_prompt_tokens",
    "prompt_share",
    "replay_weak",
    "replay_strong",
)


@dataclass
class DiagnoseConfig:
    """What launch/diagnose.py looks at; there every field may be given without `diagnose.`."""

    domain: Any = field(default_factory=list)
    """Raw files of the domain: a file, folder or glob, or a list of them; default: `raw` of the sources with role
    domain."""
    general: Any = field(default_factory=list)
    """Raw files of general text, the same way; default: those of the sources with role replay. Without any there is no
    gap, no overlap and no replay."""
    text_field: str = "text"
    """Field of a JSONL record or column of a table that holds the text."""
    out: str = "diagnosis"
    """Folder of diagnosis.json, diagnosis.md and diagnosis.html."""
    need: str = "unknown"
    """What the model lacks: knowledge, behaviour (format, style, tasks) or language."""
    instructions: int | None = None
    """Examples of prompts with good answers that are there."""
    accuracy: float | None = None
    """Share of right answers of the base model on the task, with its best prompt."""
    target: float | None = None
    """Share of right answers that would do."""
    fresh_days: float | None = None
    """Days after which a new fact must be in the answers."""
    privacy: str = "unknown"
    """none, removable (documents must be taken out on request) or per_reader (not every reader may see all)."""
    max_prompt_tokens: int | None = None
    """Most tokens that a request may carry, for its latency or price."""
    budget_tokens: str | None = None
    """Tokens that can be trained on, such as 5B."""
    gpu_hours: float | None = None
    """The budget as hours of one device, in place of budget_tokens; needs tflops_per_gpu."""
    tflops_per_gpu: float | None = None
    """TFLOP/s that a device reaches in training (not its peak; 40% of the peak is good)."""
    gpus: int | None = None
    """Devices; with gpu_memory it is asked whether training fits."""
    gpu_memory: str | None = None
    """Memory of a device, such as 80GB."""
    sample_bytes: str = "8M"
    """Text of each side that is kept as a sample of its documents, for words, tokens, scores and pilot."""
    held_out_tokens: str = "16k"
    """Tokens of each side whose bits per byte are measured."""
    pilot: bool = True
    """Train on a small part of the domain to see whether the model learns from it."""
    pilot_share: float = 0.01
    """Largest part of the domain's tokens that the pilot reads."""
    pilot_tokens: str = "200k"
    """Most tokens that it reads."""
    pilot_seconds: float = 300.0
    """Most time that it trains."""
    pilot_learning_rate: float | None = None
    """Its peak; default: 3e-5 up to 8B parameters, 1e-5 above."""
    thresholds: dict[str, float] = field(default_factory=dict)
    """Name of a threshold (docs/diagnosis.md) -> value in place of its default."""


def diagnose_problems(config: DiagnoseConfig) -> list[str]:
    """What is wrong with the values of `config`, a line a problem; counts with units are checked where all are."""
    problems = []
    for key, allowed in (("need", NEEDS), ("privacy", PRIVACIES)):
        value = getattr(config, key)
        if value not in allowed:
            problems.append(f"diagnose.{key}: '{value}' is unknown; {nearest(value, allowed)}")
    for key in ("domain", "general"):
        value = getattr(config, key)
        if not isinstance(value, str) and not (isinstance(value, list) and all(isinstance(one, str) for one in value)):
            problems.append(f"diagnose.{key}: {value!r} is no path and no list of paths; write {key}=[a.jsonl,b.txt]")
    for key in ("accuracy", "target"):
        value = getattr(config, key)
        if value is not None and not 0 <= value <= 1:
            problems.append(f"diagnose.{key}: {value} is no share; give one within 0 to 1, such as 0.8")
    if (config.accuracy is None) != (config.target is None):
        given, missing = ("accuracy", "target") if config.target is None else ("target", "accuracy")
        problems.append(f"diagnose.{given}: it says nothing without {missing}; give {missing} too")
    for key, least in (("instructions", 0), ("max_prompt_tokens", 0), ("gpus", 1)):
        value = getattr(config, key)
        if value is not None and value < least:
            problems.append(f"diagnose.{key}: {value} must be at least {least}")
    for key in ("fresh_days", "gpu_hours", "tflops_per_gpu", "pilot_seconds", "pilot_learning_rate"):
        value = getattr(config, key)
        if value is not None and not value > 0:
            problems.append(f"diagnose.{key}: {value} must be positive")
    if not 0 < config.pilot_share <= 1:
        problems.append(f"diagnose.pilot_share: {config.pilot_share} must lie within 0 (exclusive) to 1")
    for one, other in (("gpu_hours", "tflops_per_gpu"), ("gpus", "gpu_memory")):
        if (getattr(config, one) is None) != (getattr(config, other) is None):
            missing = other if getattr(config, other) is None else one
            problems.append(f"diagnose.{missing}: {one} and {other} are read together; give it too")
    if config.gpu_hours is not None and config.budget_tokens is not None:
        problems.append("diagnose.gpu_hours: the budget is given as budget_tokens too; keep one of the two")
    for name, number in config.thresholds.items():
        if name not in THRESHOLDS:
            problems.append(f"diagnose.thresholds.{name}: there is no such threshold; {nearest(name, THRESHOLDS)}")
        elif not number >= 0 or (name.startswith("replay_") and not number < 1):
            problems.append(f"diagnose.thresholds.{name}: {number} must not be negative, and a replay share below 1")
    return problems


def diagnose_quantities(config: DiagnoseConfig) -> dict[str, str]:
    """Key -> the counts among the values of `config` that were given."""
    names = ("budget_tokens", "gpu_memory", "sample_bytes", "held_out_tokens", "pilot_tokens")
    return {f"diagnose.{name}": getattr(config, name) for name in names if getattr(config, name) is not None}
