"""Whole trainings on one rank in the test's own process, where a kill is an exception that nobody expects."""

import copy
import json
from contextlib import contextmanager
from pathlib import Path

from omegaconf import OmegaConf

from cpt_dist.config import CptConfig
from cpt_dist.validation import validate
from tests.helpers import tiny_run


class Killed(BaseException):
    """Nothing in the program catches it."""


def typed(config, run_dir, **changes):
    merged = copy.deepcopy(config) | {"run_dir": str(run_dir)} | changes
    result = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(CptConfig), merged))
    validate(result)
    return result


def train(config, run_dir, **changes):
    """Train as launch/train.py does, and give the steps' records."""
    from cpt_dist.training.preflight import check_files
    from cpt_dist.training.trainer import train as run_training

    made = typed(config, run_dir, **changes)
    check_files(made)
    run_training(made)
    return tiny_run.read_metrics(run_dir)


@contextmanager
def killed_in(module, name, after=False, times=1):
    """The next call of `module.name` kills the process, before or after it has done its work."""
    original, left = getattr(module, name), [times]

    def killing(*arguments, **named):
        left[0] -= 1
        if left[0]:
            return original(*arguments, **named)
        if after:
            original(*arguments, **named)
        raise Killed

    setattr(module, name, killing)
    try:
        yield
    finally:
        setattr(module, name, original)


def ledger(run_dir, kind=None):
    path = Path(run_dir) / "ledger.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [record for record in map(json.loads, lines) if kind in (None, record["kind"])]


def lineage(run_dir):
    return [json.loads(line) for line in (Path(run_dir) / "lineage.jsonl").read_text().splitlines()]
