"""What launch/evaluate.py asks the models beside bits per byte: suites, facts and prompts (docs/suites.md)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class SuitesConfig:
    run: list[str] = field(default_factory=list)
    """Suites: files of the form of docs/suites.md (NAME.yaml), or names of lm-evaluation-harness tasks and groups. In
    launch/evaluate.py also as plain suites=[…]."""
    every_steps: int = 0
    """Steps between asking the model in training: `run` and `probes` go into metrics.jsonl, before the first step and
    at the end too. 0: not inside training."""
    task_folders: list[str] = field(default_factory=list)
    """Folders of lm-evaluation-harness task files (their include_path), searched before those that it ships."""
    limit: int = 0
    """At most so many items of each task, its first; 0: all."""
    num_fewshot: int | None = None
    """Worked examples before each item; default: what the task says."""
    margin: float | None = None
    """Loss in points (0.02 = 2 of 100 items) that still counts as kept; default: 0.02 from 1,000 items on, else 0.03.
    A suite file's own margin comes first."""
    contamination: bool = True
    """Search the training shards (data.sources) for the items, and give results without those found as well."""
    ngram: int = 13
    """Words in a row that make an item contaminated."""
    probes: list[str] = field(default_factory=list)
    """Files of facts (docs/suites.md): what the model knows of what it was trained on, beside facts it never saw."""
    prompts: str | None = None
    """JSONL file of prompts ({"prompt": …} a line) that both models continue, for reading side by side."""
    max_new_tokens: int = 64
    """Tokens of each continuation of `prompts`."""
    num_samples: int = 2
    """Random continuations of each of `prompts` beside the greedy one, with the same seeds for both models."""
    temperature: float = 0.8
    """Temperature of the random continuations."""
    top_p: float = 0.95
    """Random continuations draw from the likeliest tokens that together have this probability."""


def asks_anything(config: SuitesConfig) -> bool:
    """Whether there is anything to ask."""
    return bool(config.run or config.probes or config.prompts)


def suites_problems(config: SuitesConfig) -> Iterator[str]:
    """What is wrong with the values, one line each."""
    least = {"every_steps": 0, "limit": 0, "ngram": 2, "max_new_tokens": 1, "num_samples": 0}
    for name, low in least.items():
        if getattr(config, name) < low:
            yield f"suites.{name}: {getattr(config, name)} must be at least {low}"
    if config.num_fewshot is not None and config.num_fewshot < 0:
        yield f"suites.num_fewshot: {config.num_fewshot} must be at least 0; null means what the task says"
    if config.margin is not None and not 0 < config.margin < 1:
        yield f"suites.margin: {config.margin} must lie between 0 and 1, such as 0.02 for 2 points"
    if not 0 < config.temperature < math.inf:
        yield f"suites.temperature: {config.temperature} must be positive; the greedy continuation is made anyway"
    if not 0 < config.top_p <= 1:
        yield f"suites.top_p: {config.top_p} must lie within 0 (exclusive) to 1"
    if config.every_steps and not (config.run or config.probes):
        yield f"suites.every_steps: {config.every_steps} asks nothing; name suites.run or suites.probes, or set 0"
    for twice in sorted({entry for entry in config.run if config.run.count(entry) > 1}):
        yield f"suites.run: '{twice}' is named twice; take one out"
