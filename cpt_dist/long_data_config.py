"""The schema of what is asked of data for long rows, and the checks that need nothing but its values.

It is a part of `cpt_dist.config` in a file of its own; `cpt_dist/data/long_documents.py` computes the shares.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class LongDataConfig:
    min_short_share: float = 0.4
    """Least share of a stage's tokens in documents shorter than the length that the base model was trained at
    (`rope.original` of the stage, else the positions in its config.json), asked of stages with longer rows. 40% is
    ProLong's mix (arXiv 2410.02660); a stage with less is refused. 0 asks for nothing."""


def long_data_problems(long_data: LongDataConfig) -> list[str]:
    """What is wrong with `long_data`, each with the name of the field."""
    if 0 <= long_data.min_short_share <= 1:
        return []
    return [f"long_data.min_short_share: {long_data.min_short_share} must lie within 0 to 1"]
