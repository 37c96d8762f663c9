"""What a long-context evaluation needs on disk, and the lengths that follow from the models' small files.

Nothing heavy is imported here, and all that is missing is reported at once. Lengths beyond a model's declared
positions are allowed where it has RoPE: how it fares there is what the evaluation asks.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpt_dist.config import CptConfig, LongContextConfig
from cpt_dist.data.remote import is_url
from cpt_dist.errors import UserError
from cpt_dist.model.folder import check_model_folder, max_positions
from cpt_dist.model.model_files import both_rope_forms

ROPE_KEYS = ("rope_parameters", "rope_theta", "rope_scaling")
SHORT_TOKENS = 1024


@dataclass(frozen=True)
class Lengths:
    """The lengths of an evaluation, in tokens."""

    native: int
    of_tasks: tuple[int, ...]
    of_positions: int
    min_document: int
    short: int


def check_long_context(config: CptConfig) -> Lengths:
    """The lengths, once both models and the documents are found. Raises UserError with all that is missing."""
    long_context = config.evaluation.long_context
    problems: list[str] = []
    if not config.evaluate.out:
        problems.append("evaluate.out: there is no run_dir to derive it from; give it: out=FOLDER")
    configs: dict[str, dict[str, Any]] = {}
    for key, folder, fix in (
        ("base", config.evaluate.base, "give it: base=FOLDER"),
        ("adapted", config.evaluate.adapted, "give it: adapted=FOLDER (the base's to measure one model alone)"),
    ):
        if not folder or not Path(folder).is_dir():
            problems.append(f"evaluate.{key}: there is no folder '{folder}'; {fix}")
            continue
        try:
            configs[key] = check_model_folder(folder)
        except UserError as error:
            problems.extend(problem.replace("model.path", f"evaluate.{key}", 1) for problem in error.problems)
    problems.extend(_document_problems(config))
    lengths = None
    if len(configs) == 2:
        lengths = _lengths(long_context, configs["base"], configs["adapted"], problems)
    if problems or lengths is None:
        raise UserError(problems)
    return lengths


def _document_problems(config: CptConfig) -> list[str]:
    long_context = config.evaluation.long_context
    if long_context.documents:
        return []
    if config.data.sources:
        if is_url(config.data.shards) or (config.data.shards and Path(config.data.shards).is_dir()):
            return []
        return [f"data.shards: there is no folder '{config.data.shards}'; run launch/prepare.py"]
    return [
        "evaluation.long_context.documents: names no file, and data.sources is empty; give long documents: "
        "documents=[FILE, …]"
    ]


def _lengths(
    wanted: LongContextConfig, base: dict[str, Any], adapted: dict[str, Any], problems: list[str]
) -> Lengths | None:
    where = "evaluation.long_context"
    native = wanted.native_length or _trained_positions(base)
    if native is None:
        problems.append(f"{where}.native_length: the base model's config.json declares no positions; give it")
        return None
    of_tasks = list(wanted.lengths)
    if not of_tasks:
        of_tasks = [native]
        while of_tasks[-1] * 2 <= (max_positions(adapted) or native):
            of_tasks.append(of_tasks[-1] * 2)
    if wanted.tasks and native not in of_tasks:
        problems.append(
            f"{where}.lengths: {of_tasks} lack the native length {native}, to which all scores are set in relation; "
            f"add it, or set {where}.native_length"
        )
    longest = wanted.position_length or of_tasks[-1]
    for key, found in (("base", base), ("adapted", adapted)):
        limit = max_positions(found)
        if limit is not None and not any(found.get(name) for name in ROPE_KEYS):
            problems.extend(
                f"{where}.{name}: {value} is beyond the {limit} positions that evaluate.{key} has learned; lower it"
                for name, value in (("lengths", max(of_tasks)), ("position_length", longest))
                if value > limit
            )
    short = wanted.short_tokens or min(SHORT_TOKENS, native)
    if short > native:
        problems.append(f"{where}.short_tokens: {short} is beyond the native length {native}; lower it to {native}")
    return Lengths(native, tuple(of_tasks), longest, wanted.min_document_tokens or min(native, longest), short)


def _trained_positions(config: dict[str, Any]) -> int | None:
    parameters = both_rope_forms(config).get("rope_parameters") or {}
    return parameters.get("original_max_position_embeddings") or max_positions(config)
