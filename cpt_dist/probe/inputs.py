"""What a probe needs on disk, checked before anything heavy is imported, all problems at once."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from cpt_dist.config import CptConfig, parse_quantity
from cpt_dist.errors import UserError
from cpt_dist.model.folder import max_positions, read_model_config
from cpt_dist.probe.arms import arms_of
from cpt_dist.probe.spec import read_task
from cpt_dist.probe_config import probe_length_problems

NOWHERE = ("", "/model", "/probe")
"""What folders say that are derived from run_dir or model.path where none was given."""


def check_probe_inputs(config: CptConfig) -> None:
    """Raise UserError unless data, gold set and models are there and the process is alone."""
    given = {"base": config.evaluate.base, "adapted": config.evaluate.adapted, "out": config.probe.out}
    problems = [f"{key} is missing; give it: {key}=FOLDER" for key, value in given.items() if value in NOWHERE]
    if problems:
        raise UserError(problems)
    for check in (read_task, arms_of, _lengths):
        try:
            check(config)
        except UserError as error:
            problems += error.problems
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        problems.append("probe: start it once, with plain python; processes=N trains on N processes")
    if importlib.util.find_spec("lm_eval") is None:
        problems.append("probe: scoring needs lm-evaluation-harness; pip install 'cpt_dist[eval]'")
    if problems:
        raise UserError(problems)


def _lengths(config: CptConfig) -> None:
    batch_tokens = parse_quantity(config.probe.batch_tokens, "probe.batch_tokens")
    problems = probe_length_problems(config.probe, batch_tokens)
    for name, folder in (("base", config.evaluate.base), ("adapted", config.evaluate.adapted)):
        if (Path(folder) / "config.json").is_file():
            positions = max_positions(read_model_config(folder))
            if positions is not None and config.probe.seq_len > positions:
                problems.append(
                    f"probe.seq_len: {config.probe.seq_len} is beyond the {positions} positions of {name} '{folder}'; "
                    "lower it"
                )
    if problems:
        raise UserError(problems)
