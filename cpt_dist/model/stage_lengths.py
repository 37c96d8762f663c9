"""Whether a model can have the lengths and RoPEs of a plan, for a script that reports all mistakes of a plan at once.

It reads the model's config.json where there is one; what is wrong with the file itself is found by `preflight`.
"""

from __future__ import annotations

from pathlib import Path

from cpt_dist.config import CptConfig
from cpt_dist.errors import UserError
from cpt_dist.model.folder import read_model_config
from cpt_dist.model.rope import stage_ropes
from cpt_dist.plans_of_run import all_plans, all_stages
from cpt_dist.rope_config import rope_problems


def length_problems(config: CptConfig) -> list[str]:
    """A line for each stage, of any plan that the run can come to, that is too long for its RoPE or can't have it."""
    if not config.model.path or not (Path(config.model.path) / "config.json").is_file():
        return []
    if any(rope_problems(stage.rope) for stage in all_stages(config) if stage.rope is not None):
        return []
    found: list[str] = []
    for where, stages in all_plans(config).items():
        try:
            stage_ropes(read_model_config(config.model.path), stages)
        except UserError as error:
            found += [line for one in error.problems if (line := where + one) not in found]
    return found
