"""A run directory as the checks see it: metrics, configurations of the starts, heartbeats, logs.

It takes what it finds: a file that is missing or torn makes a check say that there is not enough data, and never
fails. Only the configuration has to be there. It writes nothing.
"""

from __future__ import annotations

import glob
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from cpt_dist.config import CptConfig, StageConfig, parse_quantity
from cpt_dist.errors import UserError
from cpt_dist.evaluation.run_log import RunLog
from cpt_dist.run_directory import RunDirectory

LOG_TAIL_BYTES = 4 << 20
"""Of each log file, at its end: what ended a process stands there."""
_LOGS = ("logs/**/*.out", "logs/**/*.err", "logs/*.log", "slurm/*.out", "*.log")


@dataclass(frozen=True)
class StagePlace:
    """A stage in the samples of a run."""

    key: str
    """Where it is configured, such as stages.0."""
    stage: StageConfig
    start: int
    num_samples: int
    batch_samples: int


def _keys(config: CptConfig) -> dict[str, tuple[str, StageConfig]]:
    """Name of each stage that is written down -> its key and itself."""
    found = {stage.name: (f"stages.{index}", stage) for index, stage in enumerate(config.stages)}
    for other, plan in config.alternatives.items():
        for index, stage in enumerate(plan.stages):
            found.setdefault(stage.name, (f"alternatives.{other}.stages.{index}", stage))
    return found


def stage_places(config: CptConfig, order: dict[str, Any] | None = None) -> list[StagePlace]:
    """Where each stage lies in the samples; up to the first whose length isn't known.

    `order` is the content of order.json, which names the stages of a run that forked and knows lengths in epochs.
    Tokens are rounded up to whole steps, as the sample order does.
    """
    known = {one["name"]: one for one in (order or {}).get("stages", [])}
    stages = _keys(config)
    places, start = [], 0
    for name in known or [stage.name for stage in config.stages]:
        if name not in stages:
            break
        key, stage = stages[name]
        if stage.tokens is not None:
            batch_tokens = parse_quantity(stage.batch_tokens, f"{key}.batch_tokens")
            batch = batch_tokens // stage.seq_len
            num_samples = math.ceil(parse_quantity(stage.tokens, f"{key}.tokens") / batch_tokens) * batch
        elif name in known:
            batch, num_samples = known[name]["batch_samples"], known[name]["num_samples"]
        else:
            break
        places.append(StagePlace(key, stage, start, num_samples, batch))
        start += num_samples
    return places


@dataclass
class Case:
    """What is known of a run."""

    path: Path
    config: CptConfig
    """Of the newest start, with what the command line changed."""
    log: RunLog
    start_files: list[Path] = field(default_factory=list)
    """The saved configuration of each start."""
    skips: list[dict[str, Any]] = field(default_factory=list)
    saves: list[dict[str, Any]] = field(default_factory=list)
    """Records of kind checkpoint."""
    bad_numbers: dict[str, Any] | None = None
    heartbeats: list[dict[str, Any]] = field(default_factory=list)
    lost: list[dict[str, Any]] = field(default_factory=list)
    """What ranks said about others that were missing."""
    logs: list[Path] = field(default_factory=list)
    order: dict[str, Any] | None = None
    """Content of order.json."""
    has_forked: bool = False
    """Its stages are not those of `config`: a gate took another way, or the run began inside another one's."""
    leftovers: list[str] = field(default_factory=list)
    """Folders of saves that were begun and are not whole."""
    now: float = 0.0
    """Seconds since the epoch."""

    @cached_property
    def start_configs(self) -> list[CptConfig | None]:
        """What is in `start_files`; None where one can't be read."""
        return [_config(path) for path in self.start_files]

    @property
    def steps(self) -> list[dict[str, Any]]:
        """Records of the steps that the weights have seen."""
        return self.log.steps

    @property
    def last_step(self) -> int:
        """Number of the newest recorded step."""
        return self.steps[-1]["step"] if self.steps else 0

    @property
    def num_steps(self) -> int | None:
        """Steps of the whole plan."""
        return next((start["num_steps"] for start in reversed(self.log.starts) if "num_steps" in start), None)

    @property
    def progress(self) -> float | None:
        """Share of the planned steps that is done."""
        return self.last_step / self.num_steps if self.num_steps else None

    @property
    def roles(self) -> dict[str, str]:
        """Source -> domain or replay."""
        return {name: source.role for name, source in self.config.data.sources.items()}

    def sources(self, role: str) -> list[str]:
        """Names of the sources with a role."""
        return [name for name, own in self.roles.items() if own == role]

    @property
    def places(self) -> list[StagePlace]:
        """Where each stage lies."""
        return stage_places(self.config, self.order)

    @property
    def stage(self) -> StagePlace | None:
        """The stage of the newest step, or the first."""
        places = self.places
        name = self.steps[-1].get("stage") if self.steps else None
        return next((place for place in places if place.stage.name == name), places[0] if places else None)

    def schedule_key(self) -> str:
        """Where the learning rate of the newest stage is configured."""
        place = self.stage
        return f"{place.key}.schedule.peak_lr" if place and place.stage.schedule else "schedule.peak_lr"

    def peak_lr(self) -> float | None:
        """The peak learning rate there."""
        place = self.stage
        schedule = place.stage.schedule if place and place.stage.schedule else self.config.schedule
        return schedule.peak_lr

    def config_of(self, step: int) -> CptConfig | None:
        """The configuration of the start that made `step`; None where it isn't known."""
        if len(self.start_configs) != len(self.log.starts):
            return None
        before = [i for i, start in enumerate(self.log.starts) if start["step"] < step]
        return self.start_configs[before[-1]] if before else None

    def log_lines(self) -> Iterator[tuple[Path, int, str]]:
        """File, number of the line (from the end of the file backwards: -1 is the last) and line of every log."""
        for path in self.logs:
            try:
                with open(path, "rb") as handle:
                    handle.seek(max(0, path.stat().st_size - LOG_TAIL_BYTES))
                    lines = handle.read().decode("utf-8", "replace").splitlines()
            except OSError:
                continue
            for number, line in enumerate(lines):
                yield path, number - len(lines), line


def _records(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file with one a line; lines that are none are left out."""
    found = []
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def _one(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _config(path: Path) -> CptConfig | None:
    try:
        merged = OmegaConf.merge(OmegaConf.structured(CptConfig), OmegaConf.load(path))
        config = OmegaConf.to_object(merged)
    except (OSError, OmegaConfBaseException, YAMLError, ValueError):
        return None
    return config if isinstance(config, CptConfig) else None


def _logs(path: Path, more: Sequence[str]) -> list[Path]:
    inside = [found for pattern in _LOGS for found in path.glob(pattern)]
    problems, given = [], []
    for pattern in more:
        matches = [Path(one) for one in glob.glob(pattern, recursive=True)]
        if not matches:
            problems.append(f"doctor.logs: no file matches '{pattern}'; correct the pattern")
        given += matches
    if problems:
        raise UserError(problems)
    return sorted({one for one in [*inside, *given] if one.is_file()})


def read_case(config: CptConfig, now: float) -> Case:
    """The case of `config.run_dir` at the time `now`. Raises UserError where that is no run directory."""
    directory = RunDirectory(config.run_dir)
    if not directory.config.is_file():
        raise UserError(
            f"run_dir: '{directory.path}' has no config.yaml, so no run was started there; give the folder of a run"
        )
    given = config.doctor.logs
    logs = _logs(directory.path, [given] if isinstance(given, str) else list(given))
    records = _records(directory.metrics)
    kinds: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        kinds.setdefault(str(record.get("kind")), []).append(record)
    folders = directory.checkpoints.glob(".step-*.tmp") if directory.checkpoints.is_dir() else []
    order = directory.read_order()
    names = [stage["name"] for stage in order["stages"]] if order else None
    beats = [_one(path) for path in sorted((directory.path / "health").glob("rank-*.json"))]
    return Case(
        path=directory.path,
        config=config,
        log=RunLog.read(directory.metrics) or RunLog(),
        start_files=sorted(directory.starts.glob("*.yaml")),
        skips=kinds.get("skip", []),
        saves=kinds.get("checkpoint", []),
        bad_numbers=_one(directory.path / "bad_numbers.json"),
        heartbeats=[beat for beat in beats if beat is not None],
        lost=_records(directory.path / "health" / "lost.jsonl"),
        logs=logs,
        order=order,
        has_forked=directory.fork.is_file() or (names is not None and names != [one.name for one in config.stages]),
        leftovers=sorted(path.name for path in folders),
        now=now,
    )
