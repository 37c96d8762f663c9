"""The schema of launch/probe.py, a pinned supervised fine-tuning recipe, and the checks of its values.

It is a part of `cpt_dist.config` in a file of its own. How an arm is trained and scored is in `cpt_dist/probe`; every
field here but `seeds`, `processes`, `keep_models` and `out` is part of the spec that two results must share
(docs/probe.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

LEAST_SEEDS = 3
"""Fewer say next to nothing about how much a seed moves the score."""


@dataclass
class ProbeConfig:
    """How base and adapted model are fine-tuned for the comparison; in launch/probe.py also without `probe.`."""

    data: str = ""
    """JSONL file of training examples, with the fields that the template of `gold` reads."""
    gold: str = ""
    """Suite file (docs/suites.md) with the frozen items that both are scored on; its prompt and delimiter are the
    template of the training examples, too."""
    learning_rate: float = 2e-5
    """Peak learning rate; it falls to 0 on a straight line. The default is that of Stanford Alpaca's full fine-tuning
    of 7B parameters; models of some millions take 50 times as much."""
    warmup: float = 0.03
    """Share of training over which the learning rate rises to its peak (Alpaca's)."""
    epochs: float = 3.0
    """How often the examples are read, in whole steps."""
    batch_tokens: str = "16384"
    """Tokens of an optimizer step, prompts included; a multiple of seq_len."""
    seq_len: int = 1024
    """Tokens of a row, in which examples are packed without being cut or seeing each other."""
    weight_decay: float = 0.0
    """AdamW's, in place of `optimizer.weight_decay`; its other values are those of `optimizer`."""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Each model is fine-tuned once with each; a seed is the order of the examples."""
    processes: int = 1
    """Processes that train, started by torchrun where there are several; one per GPU."""
    keep_models: bool = False
    """Keep the fine-tuned models, else only what they scored."""
    out: str = "${run_dir}/probe"
    """Folder of probe.json, probe.md, probe.html, and of the arms, from which an interrupted probe goes on."""


def probe_problems(config: ProbeConfig) -> list[str]:
    """What is wrong with the group, a line each; counts with units are checked where all are."""
    problems = []
    if not 0 < config.learning_rate < math.inf:
        problems.append(f"probe.learning_rate: {config.learning_rate} must be positive and finite")
    if not 0 <= config.warmup < 1:
        problems.append(f"probe.warmup: {config.warmup} must lie within 0 to 1 (exclusive)")
    if not 0 < config.epochs < math.inf:
        problems.append(f"probe.epochs: {config.epochs} must be positive")
    if not 0 <= config.weight_decay < math.inf:
        problems.append(f"probe.weight_decay: {config.weight_decay} must be at least 0")
    if config.seq_len < 2:
        problems.append(f"probe.seq_len: {config.seq_len} must be at least 2")
    if config.processes < 1:
        problems.append(f"probe.processes: {config.processes} must be at least 1")
    if len(set(config.seeds)) < LEAST_SEEDS or len(set(config.seeds)) < len(config.seeds) or min(config.seeds) < 0:
        problems.append(
            f"probe.seeds: {list(config.seeds)} must be at least {LEAST_SEEDS} different numbers from 0 on, such as "
            "[0,1,2]; with fewer the luck of a seed can't be told from a gain"
        )
    return problems


def probe_length_problems(config: ProbeConfig, batch_tokens: int) -> list[str]:
    """What is wrong with the lengths, now that `batch_tokens` is a number."""
    if config.seq_len < 2 or batch_tokens % config.seq_len == 0:
        return []
    below = batch_tokens // config.seq_len * config.seq_len
    nearest = f"{below} or {below + config.seq_len}" if below else str(config.seq_len)
    return [f"probe.batch_tokens: {batch_tokens} is no multiple of probe.seq_len {config.seq_len}; nearest: {nearest}"]


def probe_quantities(config: ProbeConfig) -> dict[str, str]:
    """Key -> the counts with units among the values of `config`."""
    return {"probe.batch_tokens": config.batch_tokens}
