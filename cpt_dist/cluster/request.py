"""The command line of launch/submit.py: what is for the job, what for the submission, what is a sweep.

`sweep.KEY=a,b,c` gives a task for each value, several of them one for each combination, as Hydra's multirun does.
Everything else is handed to the job as it was typed.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from cpt_dist.errors import UserError

DRY_RUN = "--dry-run"
SWEEP = "sweep."


@dataclass(frozen=True)
class Request:
    """What the user asked for."""

    words: list[str]
    """For the job, sweeps taken out."""
    sweep: list[list[str]]
    """One override for each swept key and task; a single empty list where nothing is swept."""
    dry_run: bool

    @property
    def first_task(self) -> list[str]:
        """The arguments with which the configuration is composed first."""
        return [*self.words, *self.sweep[0]]

    @property
    def is_sweep(self) -> bool:
        """Whether there are several tasks."""
        return len(self.sweep) > 1


def parse_request(arguments: list[str], short: Mapping[str, str] | None = None) -> Request:
    """The request in the words of a command line; `short` maps short names of keys to whole ones.

    Raises UserError for a sweep that Hydra can't read.
    """
    swept, words = [], []
    for given in arguments:
        key, equals, value = given.partition("=")
        word = f"{(short or {}).get(key, key)}{equals}{value}"
        if word.startswith(SWEEP):
            swept.append(_choices(word.removeprefix(SWEEP)))
        elif word != DRY_RUN:
            words.append(word)
    # Flags and their values go first: the parser takes no overrides on both sides of one.
    words.sort(key=lambda word: word.startswith("~") or ("=" in word and not word.startswith("-")))
    combinations = [list(one) for one in itertools.product(*swept)]
    return Request(words, combinations, DRY_RUN in arguments)


def _choices(override: str) -> list[str]:
    """`seed=1,2` as ["seed=1", "seed=2"]."""
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException as error:
        raise UserError(f"{SWEEP}{override}: {str(error).splitlines()[0]}; write it like {SWEEP}seed=1,2,3") from error
    if not parsed.is_sweep_override():
        return [override]
    key = override.split("=", 1)[0]
    return [f"{key}={value}" for value in parsed.sweep_string_iterator()]


def task_folder(number: int, overrides: list[str]) -> str:
    """Name of the run directory of a sweep's task: its number and what is special about it, in plain characters."""
    text = "-".join(overrides)
    return f"task-{number:03d}-" + re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-")[:80]


def override(key: str, value: str) -> str:
    """`key=value` in Hydra's grammar, whatever characters the value has.

    Within quotes Hydra takes a backslash before a quote, or at the end, as an escape, and OmegaConf fills in `${…}`.
    """
    if re.fullmatch(r"[A-Za-z/][A-Za-z0-9_./-]*", value):
        return f"{key}={value}"
    text = re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", value)
    text = re.sub(r"(\\*)(\"|\Z)", lambda match: match[1] * 2 + (r"\"" if match[2] else ""), text)
    return f'{key}="{text}"'
