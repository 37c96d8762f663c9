"""The checks of context parallelism that need the configuration, the number of ranks and the model's config.json.

It is a part of `cpt_dist.validation` in a file of its own. How a row is shared is in `cpt_dist/engine/context/`;
nothing is computed here.
"""

from __future__ import annotations

from typing import Any

from cpt_dist.config import CptConfig, StageConfig
from cpt_dist.errors import nearest_of

ULYSSES = "ulysses"
METHODS = ("all_gather", "ring", ULYSSES)
_BATCH_DEPENDENT_ROPE = ("dynamic", "longrope", "su")


def stage_context(config: CptConfig, index: int) -> int:
    """Ranks that share each row in stage `index`."""
    own = config.stages[index].context_parallel
    return config.engine.context_parallel if own is None else own


def _stages(config: CptConfig) -> list[tuple[str, StageConfig]]:
    """Key of its `context_parallel`, and stage: those of the plan and of its alternatives."""
    lists = {"stages": config.stages} | {
        f"alternatives.{name}.stages": other.stages for name, other in config.alternatives.items()
    }
    return [
        (f"{where}.{index} ('{stage.name}').context_parallel", stage)
        for where, stages in lists.items()
        for index, stage in enumerate(stages)
    ]


def _sizes(config: CptConfig) -> list[tuple[str, int]]:
    """Each key of the configuration that sets a number of ranks, and that number."""
    own = [(key, stage.context_parallel) for key, stage in _stages(config) if stage.context_parallel is not None]
    return [("engine.context_parallel", config.engine.context_parallel), *own]


def context_problems(config: CptConfig) -> list[str]:
    """What is wrong whatever the model and the number of ranks are, one line each."""
    problems = [f"{key}: {size} must be at least 1 (1: no sharing)" for key, size in _sizes(config) if size < 1]
    method = config.engine.context_parallel_method
    if method not in METHODS:
        problems.append(f"engine.context_parallel_method: '{method}' is unknown; {nearest_of(method, METHODS)}")
    for key, stage in _stages(config):
        size = config.engine.context_parallel if stage.context_parallel is None else stage.context_parallel
        if size > max(1, stage.seq_len):
            problems.append(f"{key}: {size} ranks cannot share rows of {stage.seq_len} tokens; lower it to 1")
    return problems


def context_rank_problems(config: CptConfig, world_size: int, model: dict[str, Any]) -> list[str]:
    """What is wrong on `world_size` ranks for a model with the config.json `model`, one line each."""
    problems = []
    heads = _heads(model) if config.engine.context_parallel_method == ULYSSES else []
    for key, size in _sizes(config):
        if size <= 1:
            continue
        fitting = _nearest(size, [world_size, *heads])
        if world_size % size:
            below, above = world_size // size * size, (world_size // size + 1) * size
            ranks = f"{below} or {above}" if below else str(above)
            problems.append(
                f"{key}: {size} doesn't divide {world_size} ranks; nearest: start {ranks} ranks, or set it to {fitting}"
            )
        if any(number % size for number in heads):
            problems.append(
                f"{key}: ulysses deals out heads, and {size} doesn't divide {heads[0]} query and {heads[1]} key-value "
                f"heads; nearest: set it to {fitting}, or engine.context_parallel_method=all_gather"
            )
        stated = model.get("rope_parameters") or model.get("rope_scaling") or {}
        rope = stated.get("rope_type", stated.get("type"))
        if rope in _BATCH_DEPENDENT_ROPE:
            problems.append(
                f"{key}: the frequencies of the model's RoPE '{rope}' follow the longest sequence that a rank sees, so "
                "ranks that share a row would differ; set it to 1"
            )
    return problems


def _heads(model: dict[str, Any]) -> list[int]:
    """Query and key-value heads of a config.json, whatever the family calls them."""
    queries = int(model.get("num_attention_heads") or model.get("n_head") or 1)
    return [queries, int(model.get("num_key_value_heads") or queries)]


def _nearest(size: int, numbers: list[int]) -> int:
    """The number nearest to `size` (the smaller of two) that divides all `numbers`."""
    divisors = [one for one in range(1, min(numbers) + 1) if not any(number % one for number in numbers)]
    return min(divisors, key=lambda one: (abs(one - size), one))
