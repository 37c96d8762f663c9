"""The schema of a stage's RoPE scaling, and the checks that need nothing but its values.

It is a part of `cpt_dist.config` in a file of its own. What a type does to a model's frequencies is in
`cpt_dist/model/rope.py`; nothing is computed here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from cpt_dist.errors import nearest_of

ROPE_TYPES: dict[str, tuple[str, ...]] = {
    "none": (),
    "abf": ("theta",),
    "ntk": ("factor", "original"),
    "linear": ("factor", "original"),
    "yarn": ("factor", "original", "theta", "attention_factor", "beta_fast", "beta_slow"),
    "llama3": ("factor", "original", "theta", "low_freq_factor", "high_freq_factor"),
}
"""Name of each type -> the fields that it reads."""


@dataclass
class RopeConfig:
    """RoPE of a stage, always stated against the base model, whatever the stages before it did."""

    type: str = "abf"
    """none (as the base model), abf (another base frequency), ntk (the base frequency that NTK-aware scaling gives),
    linear (position interpolation), yarn or llama3."""
    theta: float | None = None
    """Base frequency. abf: null takes twice the NTK-aware value for the stage's seq_len (ProLong's way, arXiv
    2410.02660); yarn, llama3: null keeps the base model's."""
    factor: float | None = None
    """ntk, linear, yarn, llama3: new length as a multiple of `original`; null: what seq_len needs."""
    original: int | None = None
    """Positions that the base model was trained on; null: what its config.json says."""
    attention_factor: float | None = None
    """yarn: scale of cos and sin; null: 0.1 ln factor + 1 (arXiv 2309.00071, equation 22)."""
    beta_fast: float = 32.0
    """yarn: dimensions that turn more often than this over `original` positions stay as they are."""
    beta_slow: float = 1.0
    """yarn: dimensions that turn less often than this are interpolated whole."""
    low_freq_factor: float = 1.0
    """llama3: wavelengths above original / this are interpolated whole."""
    high_freq_factor: float = 4.0
    """llama3: wavelengths below original / this stay as they are."""


def rope_problems(rope: RopeConfig) -> list[str]:
    """What is wrong with `rope` whatever the model is; each problem begins with the name of the field."""
    if rope.type in ("dynamic", "longrope"):
        why = {
            "dynamic": "its frequencies follow the longest sequence of the moment, so training and decoding disagree "
            "within a document; use ntk, which is the same formula with a fixed length",
            "longrope": "its factors are searched for each model and cannot be made here; a base model that has them "
            "keeps them with type: none",
        }
        return [f"type: '{rope.type}' is not for training: {why[rope.type]}"]
    if rope.type not in ROPE_TYPES:
        return [f"type: '{rope.type}' is unknown; {nearest_of(rope.type, ROPE_TYPES)}"]
    reads = ROPE_TYPES[rope.type]
    problems = [
        f"{one.name} is not read by '{rope.type}' (it reads {', '.join(reads) or 'nothing'}); take it out"
        for one in fields(rope)
        if one.name != "type" and one.name not in reads and getattr(rope, one.name) != one.default
    ]
    for name, low in (("theta", 1.0), ("factor", 1.0), ("original", 1), ("attention_factor", 0.0)):
        value = getattr(rope, name)
        if value is not None and not low <= value < math.inf:
            problems.append(f"{name}: {value} must be at least {low}")
    for low_name, high_name in (("beta_slow", "beta_fast"), ("low_freq_factor", "high_freq_factor")):
        low_value, high_value = getattr(rope, low_name), getattr(rope, high_name)
        if not 0 < low_value < high_value:
            problems.append(f"{low_name}: {low_value} must be positive and below {high_name} ({high_value})")
    return problems
