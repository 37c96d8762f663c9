"""What a comparison on suites needs on disk, checked before anything heavy is imported."""

from __future__ import annotations

from pathlib import Path

from cpt_dist.config import CptConfig
from cpt_dist.errors import UserError
from cpt_dist.model.folder import check_model_folder
from cpt_dist.suites_config import asks_anything

NOWHERE = "/model"
"""What evaluate.adapted says where neither it nor run_dir was given."""


def scores_held_out(config: CptConfig) -> bool:
    """Whether held-out text is scored: with what=held_out, but not for a comparison on suites without sources."""
    asked = asks_anything(config.suites)
    return config.evaluate.what == "held_out" and (bool(config.data.sources) or not asked)


def check_suite_inputs(config: CptConfig) -> None:
    """Raise UserError unless both models are there, a folder for the report is named and there is something to ask."""
    models = {"evaluate.base": config.evaluate.base, "evaluate.adapted": config.evaluate.adapted}
    given = models | {"evaluate.out": config.evaluate.out}
    problems = [f"{key} is missing; give it: {key}=…" for key, value in given.items() if value in ("", NOWHERE)]
    if problems:
        raise UserError(problems)
    for key, folder in models.items():
        if not Path(folder).is_dir():
            problems.append(f"{key}: there is no folder '{folder}'; give that of a Hugging Face model")
            continue
        try:
            check_model_folder(folder)
        except UserError as error:
            problems += [problem.replace("model.path", key, 1) for problem in error.problems]
    if not asks_anything(config.suites):
        problems.append("suites: nothing is named; give suites=[…], suites.probes=[…] or suites.prompts=FILE")
    if problems:
        raise UserError(problems)
