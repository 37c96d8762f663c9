"""The schema of the long-context evaluation, and the checks that need nothing but its values.

It is a part of `cpt_dist.config` in a file of its own. What is measured with these values is in
`cpt_dist/evaluation/long_context/`; nothing is computed here.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from cpt_dist.errors import nearest_of

TASKS = (
    "niah_single_1",
    "niah_single_2",
    "niah_single_3",
    "niah_multikey_1",
    "niah_multikey_2",
    "niah_multikey_3",
    "niah_multivalue",
    "niah_multiquery",
    "vt",
    "cwe",
    "fwe",
    "passkey",
    "kv",
)
"""The tasks of RULER (arXiv 2404.06654) that need no data set, by its names, then passkey (arXiv 2305.16300) and
key-value lookup (arXiv 2307.03172)."""
HAYSTACKS = ("documents", "noise")


@dataclass
class LongContextConfig:
    """What launch/evaluate.py what=long_context measures (docs/evaluation.md)."""

    documents: list[str] = field(default_factory=list)
    """Long documents that neither model was trained on: files, folders or globs as in data.sources.NAME.raw. Empty:
    the documents that the data.sources hold out."""
    text_field: str = "text"
    """Field of a JSONL record or column of a table of `documents` that holds the text."""
    native_length: int | None = None
    """Tokens that the base model was trained on at a time; null: what its config.json says. Every score is set in
    relation to the model's own at this length."""
    lengths: list[int] = field(default_factory=list)
    """Tokens of the prompts of the synthetic tasks, answer included. Empty: the native length, doubled until the
    positions that the adapted model declares."""
    position_length: int | None = None
    """Tokens of a document that are scored for the loss by position; null: the longest of `lengths`."""
    position_buckets: list[int] = field(default_factory=list)
    """Borders of the position buckets, without 0 and the end; empty: powers of two from 64."""
    max_documents: int = 32
    """Documents scored for the loss by position, in the order of a hash of their text."""
    min_document_tokens: int | None = None
    """Shorter documents are not scored for it; null: the native length."""
    tasks: list[str] = field(default_factory=lambda: list(TASKS))
    """Synthetic tasks; empty measures the loss by position only."""
    items: int = 20
    """Prompts of each task and length; at least 6 to decide anything."""
    depths: list[float] = field(default_factory=lambda: [0.0, 0.25, 0.5, 0.75, 1.0])
    """Where the needle that is asked for lies: share of the haystack before it. Items take them in turn."""
    haystack: str = "documents"
    """documents (sentences of the documents), or noise (a few sentences repeated, as in niah_single_1 always)."""
    generate: bool = True
    """Let the models write the answer, too. Costs most of the time; without it only the likelihoods are compared."""
    short_tokens: int | None = None
    """Window of the bits per byte that show what the short context has lost, at most the native length; null: 1024, or
    the native length where that is shorter."""


def long_context_problems(config: LongContextConfig) -> list[str]:
    """What is wrong whatever the models are; each problem begins with the name of the field."""
    problems = [f"tasks: '{task}' is unknown; {nearest_of(task, TASKS)}" for task in config.tasks if task not in TASKS]
    problems += [f"tasks: '{task}' is named twice; take one out" for task in _twice(config.tasks)]
    if config.haystack not in HAYSTACKS:
        problems.append(f"haystack: '{config.haystack}' is unknown; it is one of {', '.join(HAYSTACKS)}")
    problems += [f"depths: {depth} must lie between 0 and 1" for depth in config.depths if not 0 <= depth <= 1]
    if not config.depths:
        problems.append("depths: empty; give at least one, such as [0.5]")
    for name in ("lengths", "position_buckets"):
        values = getattr(config, name)
        if any(value < 1 for value in values) or any(b <= a for a, b in itertools.pairwise(values)):
            problems.append(f"{name}: {values} must be positive and rise")
    for name, least in (
        ("native_length", 2),
        ("position_length", 2),
        ("min_document_tokens", 2),
        ("max_documents", 1),
        ("items", 1),
        ("short_tokens", 2),
    ):
        value = getattr(config, name)
        if value is not None and value < least:
            problems.append(f"{name}: {value} must be at least {least}")
    return problems


def _twice(names: list[str]) -> list[str]:
    return sorted({name for name in names if names.count(name) > 1})
