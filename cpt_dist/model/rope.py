"""RoPE of each stage: from its configuration and the base model's config.json to the keys that state it.

Everything here is arithmetic on config values, so a plan can show it without loading a model. Frequencies that train
are made by transformers from the same keys; `inverse_frequencies` is an account of them of our own, for previews and
as the oracle of the tests. Types whose frequencies follow the batch (HF's `dynamic`) are refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from cpt_dist.config import RopeConfig, StageConfig
from cpt_dist.errors import UserError
from cpt_dist.model.folder import max_positions
from cpt_dist.model.model_files import both_rope_forms

_ABF_MARGIN = 2.0
_BATCH_DEPENDENT = {"dynamic": "the longest sequence of the moment", "longrope": "the longest sequence of a batch"}


@dataclass(frozen=True)
class StageRope:
    """What a stage's RoPE is."""

    parameters: dict[str, Any]
    """As in `rope_parameters` of transformers 5: rope_type, rope_theta and what the type reads."""
    max_positions: int
    """Longest sequence that the model declares after the stage."""
    formula: str
    """Where theta and factor come from, for the record."""

    @property
    def config_changes(self) -> dict[str, Any]:
        """The keys of config.json that state it, to transformers 4 and 5 alike."""
        return {
            **both_rope_forms({"rope_parameters": self.parameters}),
            "max_position_embeddings": self.max_positions,
        }


def rotary_dimensions(config: dict[str, Any]) -> int:
    """Dimensions of a head that are rotated."""
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    partial = (config.get("rope_parameters") or {}).get("partial_rotary_factor", config.get("partial_rotary_factor"))
    return int(head_dim * (1.0 if partial is None else partial))


def trained_positions(config: dict[str, Any], rope: RopeConfig | None = None) -> int | None:
    """Positions that the base model was trained on: what `rope.original` says, else what its config.json declares.

    A base that was extended before (Llama 3.1) counts with its extended length. None where neither says any.
    """
    return rope.original if rope is not None and rope.original else max_positions(config)


def stage_trained_positions(config: dict[str, Any], stages: list[StageConfig]) -> list[int | None]:
    """`trained_positions` for each stage; one without `rope` goes by that of the stage before it."""
    found, rope = [], None
    for stage in stages:
        rope = stage.rope if stage.rope is not None else rope
        found.append(trained_positions(config, rope))
    return found


def ntk_theta(theta: float, scale: float, dimensions: int) -> float:
    """The base frequency at which the slowest dimension is stretched by `scale` and the fastest stays: θ·s^(d/(d−2)).

    Source: bloc97's NTK-aware scaling, as written in YaRN (arXiv 2309.00071), section 3.1, for a fixed length.
    """
    return theta * scale ** (dimensions / (dimensions - 2))


def stage_ropes(config: dict[str, Any], stages: list[StageConfig]) -> list[StageRope | None]:
    """The RoPE that each stage trains with; None where it is still the base model's own.

    `config` is the base model's config.json. A stage without `rope` keeps that of the stage before it. Raises
    UserError with every stage whose RoPE the model can't have, or whose rows are longer than its RoPE declares.
    """
    ropes: list[StageRope | None] = []
    problems = []
    for index, stage in enumerate(stages):
        where = f"stages.{index} ('{stage.name}')"
        rope = ropes[-1] if ropes else None
        if stage.rope is not None:
            try:
                rope = _stage_rope(config, stage.rope, stage.seq_len)
            except UserError as error:
                problems += [f"{where}.rope{problem}" for problem in error.problems]
        limit = rope.max_positions if rope is not None else max_positions(config)
        if limit is not None and stage.seq_len > limit and (stage.rope is None or not problems):
            fix = f"lower it to {limit}"
            if stage.rope is not None:
                fix = f"raise rope.factor, or {fix}"
            elif both_rope_forms(config):
                fix = f"give the stage a rope, such as {{type: abf}}, or {fix}"
            problems.append(
                f"{where}.seq_len: {stage.seq_len} is beyond the {limit} positions that its model declares; {fix}"
            )
        ropes.append(rope)
    if problems:
        raise UserError(problems)
    return ropes


def _stage_rope(config: dict[str, Any], rope: RopeConfig, seq_len: int) -> StageRope | None:
    if rope.type == "none":
        return None
    base = both_rope_forms(config).get("rope_parameters")
    if base is None:
        raise UserError(
            f": the config.json of this {config.get('model_type')} model states no single RoPE (no rope_theta); "
            "add its rope_theta there, or take rope out"
        )
    if base["rope_type"] in _BATCH_DEPENDENT:
        follows = _BATCH_DEPENDENT[base["rope_type"]]
        raise UserError(
            f".type: the base model's '{base['rope_type']}' follows {follows} and is not replaced; use none"
        )
    declared = int(base.get("original_max_position_embeddings") or max_positions(config) or 0)
    original = rope.original or declared
    if not original:
        raise UserError(".original: the model's config.json declares no positions; give them")
    shared = {key: base[key] for key in ("partial_rotary_factor",) if key in base}
    theta, dimensions = float(base["rope_theta"]), rotary_dimensions(config)
    if rope.type == "abf":
        scale = max(1.0, seq_len / original)
        formula = "theta as given"
        new = rope.theta
        if new is None:
            new = round(_ABF_MARGIN * ntk_theta(theta, scale, dimensions)) if scale > 1 else theta
            formula = f"theta = {_ABF_MARGIN:g} x NTK-aware value of {theta:g} for {scale:g} x {original} positions"
        parameters = {"rope_type": "default", "rope_theta": float(new), **shared}
        return StageRope(parameters, max(seq_len, max_positions(config) or 0), formula)
    factor = rope.factor if rope.factor is not None else max(1.0, seq_len / original)
    length = round(factor * original)
    formula = f"factor {factor:g} x {original} positions"
    if rope.type == "ntk":
        new = ntk_theta(theta, factor, dimensions)
        parameters = {"rope_type": "default", "rope_theta": new, **shared}
        return StageRope(parameters, length, f"theta = {theta:g} x {factor:g}^(d/(d-2)), d = {dimensions}; {formula}")
    theta = rope.theta or theta
    parameters = {"rope_type": rope.type, "rope_theta": theta, "factor": float(factor), **shared}
    if rope.type in ("yarn", "llama3"):
        parameters["original_max_position_embeddings"] = original
    if rope.type == "yarn":
        attention = rope.attention_factor
        parameters["attention_factor"] = attention if attention is not None else 0.1 * math.log(factor) + 1.0
        parameters |= {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow}
    if rope.type == "llama3":
        parameters |= {"low_freq_factor": rope.low_freq_factor, "high_freq_factor": rope.high_freq_factor}
    return StageRope(parameters, length, formula)


def inverse_frequencies(parameters: dict[str, Any], dimensions: int) -> np.ndarray:
    """float64 [dimensions / 2]: radians by which each pair of dimensions turns from one position to the next.

    Sources: RoFormer (arXiv 2104.09864) equation 15; position interpolation (arXiv 2306.15595); YaRN (arXiv 2309.00071)
    section 3.2; Llama 3.1's reference code. Raises ValueError for another type.
    """
    theta, kind = parameters["rope_theta"], parameters["rope_type"]
    plain = theta ** -(np.arange(0, dimensions, 2, dtype=np.float64) / dimensions)
    if kind == "default":
        return plain
    factor = parameters.get("factor", 1.0)
    if kind == "linear":
        return plain / factor
    original = parameters["original_max_position_embeddings"]
    if kind == "yarn":

        def dimension_of(rotations: float) -> float:
            return dimensions * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

        low = max(math.floor(dimension_of(parameters["beta_fast"])), 0)
        high = min(math.ceil(dimension_of(parameters["beta_slow"])), dimensions - 1)
        ramp = np.clip((np.arange(dimensions // 2) - low) / max(high - low, 1e-3), 0, 1)
        return plain / factor * ramp + plain * (1 - ramp)
    if kind == "llama3":
        low_factor, high_factor = parameters["low_freq_factor"], parameters["high_freq_factor"]
        turns = original * plain / (2 * math.pi)
        smooth = np.clip((turns - low_factor) / (high_factor - low_factor), 0, 1)
        return (1 - smooth) * plain / factor + smooth * plain
    raise ValueError(f"rope_type '{kind}' is none of default, linear, yarn, llama3")


@dataclass(frozen=True)
class DimensionRange:
    """A run of neighbouring pairs of dimensions that meet a longer sequence in the same way."""

    first: int
    last: int
    kind: str
    """seen: they turned round within the trained length. interpolated: they turn more slowly than in the base, so
    that the new length holds angles which training has seen. extrapolated: the new length holds new angles."""
    wavelengths: tuple[float, float]
    """Positions for a full turn, of the first and the last pair."""


def dimension_ranges(
    base: np.ndarray, scaled: np.ndarray, original_positions: int, target_positions: int
) -> list[DimensionRange]:
    """Which dimensions are extrapolated at `target_positions`, for inverse frequencies of the base and of the stage.

    A pair whose wavelength is within the trained length has seen every angle; of the others, those whose largest angle
    at the target is larger than the largest one in training are extrapolated (YaRN, arXiv 2309.00071, section 3.2).
    """
    seen = base * original_positions >= 2 * math.pi
    beyond = scaled * target_positions > base * original_positions * (1 + 1e-9)
    kinds = np.where(seen, "seen", np.where(beyond, "extrapolated", "interpolated"))
    edges = np.flatnonzero(kinds[1:] != kinds[:-1]) + 1
    ranges = []
    for first, stop in zip([0, *edges], [*edges, len(kinds)], strict=True):
        lengths = (2 * math.pi / float(scaled[first]), 2 * math.pi / float(scaled[stop - 1]))
        ranges.append(DimensionRange(int(first), int(stop) - 1, str(kinds[first]), lengths))
    return ranges
