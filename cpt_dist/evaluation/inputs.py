"""What an evaluation needs on disk, checked before anything heavy is imported.

It looks at small files only, and reports all that is missing at once. Whether weights fit and held-out files are
undamaged is found by those who read them.
"""

from __future__ import annotations

from pathlib import Path

from cpt_dist.config import CptConfig
from cpt_dist.data.remote import is_url
from cpt_dist.errors import UserError
from cpt_dist.evaluation.probe_claims import read_probes
from cpt_dist.evaluation.suites.suite_file import read_suites
from cpt_dist.model.folder import check_model_folder, max_positions
from cpt_dist.run_directory import RunDirectory


def check_inputs(config: CptConfig) -> None:
    """Raise UserError unless both models of `config.evaluate`, sources and their shards are there."""
    _check(
        config,
        ("base", config.evaluate.base, "set evaluate.base to the folder of the model before adaptation"),
        ("adapted", config.evaluate.adapted, "run launch/consolidate.py, or set evaluate.adapted"),
    )


def check_trajectory_inputs(config: CptConfig) -> None:
    """Raise UserError unless the run's base model, its checkpoints, sources and their shards are there."""
    problems = []
    try:
        _check(config, ("base", config.model.path, "set model.path to the base model of the run"))
    except UserError as error:
        problems += error.problems
    folder = RunDirectory(config.run_dir).checkpoints
    if config.run_dir and not folder.is_dir():
        problems.append(f"run_dir: there is no folder '{folder}'; train first, or name another run")
    if problems:
        raise UserError(problems)


def _check(config: CptConfig, *models: tuple[str, str, str]) -> None:
    given = {"data.shards": config.data.shards, "model.path": config.model.path, "run_dir": config.run_dir}
    missing = [f"{key} is missing; give it: {key}=…" for key, value in given.items() if not value]
    if missing:
        raise UserError(missing)
    problems = []
    for key, folder, fix in models:
        if not Path(folder).is_dir():
            problems.append(f"evaluate.{key}: there is no folder '{folder}'; {fix}")
            continue
        try:
            positions = max_positions(check_model_folder(folder))
        except UserError as error:
            problems.extend(problem.replace("model.path", f"evaluate.{key}", 1) for problem in error.problems)
            continue
        if positions is not None and config.evaluation.seq_len > positions:
            problems.append(
                f"evaluation.seq_len: {config.evaluation.seq_len} is beyond the {positions} positions of "
                f"evaluate.{key} '{folder}'; lower it"
            )
    if not config.data.sources:
        problems.append("data.sources: empty, so there is nothing to evaluate; name the sources that were prepared")
    elif not is_url(config.data.shards) and not Path(config.data.shards).is_dir():
        problems.append(f"data.shards: there is no folder '{config.data.shards}'; run launch/prepare.py")
    if problems:
        raise UserError(problems)


def check_verdict_inputs(config: CptConfig) -> None:
    """Raise UserError, with all problems, before anything heavy is loaded."""
    problems = []
    try:
        check_inputs(config)
    except UserError as error:
        problems += error.problems
    control = config.verdict.control
    if control is not None:
        try:
            check_model_folder(control)
        except UserError as error:
            problems += [problem.replace("model.path", "verdict.control", 1) for problem in error.problems]
    known = {*config.data.sources, *config.verdict.goals}
    for name in sorted(set(config.verdict.margins) - known):
        problems.append(f"verdict.margins: '{name}' is no source and no goal; those are {', '.join(sorted(known))}")
    try:
        suites = [suite.name for suite in read_suites(config.suites.run)]
        suites += [record["probe"] for record in read_probes(config.verdict.probe)]
    except UserError as error:
        problems += error.problems
        suites = config.verdict.goals
    for name in sorted(set(config.verdict.goals) - set(suites)):
        known_names = ", ".join(suites) or "empty"
        problems.append(f"verdict.goals: there is no suite '{name}' in suites.run and no such probe ({known_names})")
    if problems:
        raise UserError(problems)
