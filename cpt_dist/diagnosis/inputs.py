"""What a diagnosis needs on disk, checked before anything heavy is imported."""

from __future__ import annotations

from typing import Any

from cpt_dist.config import CptConfig
from cpt_dist.corpus.inputs import find_inputs
from cpt_dist.errors import UserError
from cpt_dist.model.folder import check_model_folder, max_positions


def _patterns(given: Any, config: CptConfig, role: str) -> list[str]:
    if given:
        return [given] if isinstance(given, str) else list(given)
    return [path for source in config.data.sources.values() if source.role == role for path in source.raw]


def check_inputs(config: CptConfig) -> tuple[list[str], list[str]]:
    """The domain's and the general files; UserError where the model folder or a file is missing."""
    problems: list[str] = []
    try:
        positions = max_positions(check_model_folder(config.model.path))
        if positions is not None and positions < 2:
            problems.append(f"model.path: '{config.model.path}' declares {positions} positions; use another model")
    except UserError as error:
        problems += error.problems
    domain = _patterns(config.diagnose.domain, config, "domain")
    if not domain:
        problems.append("domain is missing; give the files of the domain: domain=FILES (a file, a folder or a glob)")
    general = _patterns(config.diagnose.general, config, "replay")
    for key, patterns in (("diagnose.domain", domain), ("diagnose.general", general)):
        try:
            if patterns:
                find_inputs(patterns, key)
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems)
    return domain, general
