"""RoPE of each stage for the preview: what is declared, where it comes from, and what each dimension meets.

Arithmetic over the base model's config.json; no weights are read. The frequencies are those of `model/rope.py`, which
the tests hold against transformers.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from cpt_dist.config import StageConfig
from cpt_dist.model.model_files import both_rope_forms
from cpt_dist.model.rope import (
    StageRope,
    dimension_ranges,
    inverse_frequencies,
    rotary_dimensions,
    stage_ropes,
    stage_trained_positions,
    trained_positions,
)

_OWN = "that of the base model"


def plan_ropes(config: dict[str, Any], stages: list[StageConfig]) -> list[dict[str, Any] | None]:
    """A record of each stage's RoPE; None for a model that states no single one.

    `config` is the base model's config.json. Raises UserError as `stage_ropes` does.
    """
    ropes = stage_ropes(config, stages)
    base = both_rope_forms(config).get("rope_parameters")
    if base is None:
        return [None] * len(stages)
    records: list[dict[str, Any] | None] = []
    declared = None
    for stage, rope, trained in zip(stages, ropes, stage_trained_positions(config, stages), strict=True):
        declared = stage.rope if stage.rope is not None else declared
        parameters = base if rope is None else rope.parameters
        records.append(
            {
                "type": declared.type if declared is not None and rope is not None else base["rope_type"],
                "since": "base" if rope is None else "stage" if stage.rope is not None else "stage before",
                "theta": float(parameters["rope_theta"]),
                "factor": parameters.get("factor"),
                "original": parameters.get("original_max_position_embeddings", trained),
                "attention_factor": parameters.get("attention_factor"),
                "parameters": parameters,
                "formula": _OWN if rope is None else rope.formula,
                "trained_positions": trained,
                "target_positions": stage.seq_len,
                "max_positions": _declared_positions(config, rope),
                **_dimensions(config, base, parameters, trained, stage.seq_len),
            }
        )
    return records


def _declared_positions(config: dict[str, Any], rope: StageRope | None) -> int | None:
    return trained_positions(config, None) if rope is None else rope.max_positions


def _dimensions(
    config: dict[str, Any], base: dict[str, Any], parameters: dict[str, Any], trained: int | None, target: int
) -> dict[str, Any]:
    """Runs of pairs of dimensions by what they meet at `target`; None where no closed form or trained length is."""
    dimensions = rotary_dimensions(config)
    try:
        of_base, of_stage = (inverse_frequencies(one, dimensions) for one in (base, parameters))
    except ValueError as error:
        return {"dimensions": dimensions, "ranges": None, "unknown": str(error)}
    if trained is None:
        return {"dimensions": dimensions, "ranges": None, "unknown": "config.json declares no positions"}
    ranges = [asdict(one) for one in dimension_ranges(of_base, of_stage, trained, target)]
    pairs = dict.fromkeys(("seen", "interpolated", "extrapolated"), 0)
    for one in ranges:
        pairs[one["kind"]] += one["last"] - one["first"] + 1
    turns = of_stage * target / (2 * np.pi)
    return {
        "dimensions": dimensions,
        "ranges": [{**one, "wavelengths": list(one["wavelengths"])} for one in ranges],
        "pairs": pairs,
        "turns_at_target": turns.tolist(),
    }
