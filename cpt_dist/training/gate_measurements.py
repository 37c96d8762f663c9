"""What a gate can measure with the model in training; a further kind is a function here and a name in `gate_config`.

A measurement is made on all ranks together and gives the same on each: what of it -> items, less being better. What
it reads from files is read once in a job and kept in `run.material`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from cpt_dist.data.gate_decision import standing_decision
from cpt_dist.errors import UserError, nearest
from cpt_dist.evaluation.documents import DocumentEncoder
from cpt_dist.evaluation.long_context import inside
from cpt_dist.evaluation.non_inferiority import Measured
from cpt_dist.evaluation.suites.compare import Judge
from cpt_dist.evaluation.suites.run import ask
from cpt_dist.gate_config import HELD_OUT, LONG_TASKS, MACRO, NON_INFERIOR, POSITIONS, SUITES, GateConfig, bucket
from cpt_dist.training.asked_suites import JobSuites, suites_of
from cpt_dist.training.held_out import HeldOut
from cpt_dist.training.run import Run

Measurement = Callable[[Run, Collection[str]], Mapping[str, Measured]]
"""measurement(run, names of what is asked for) -> at least these, each measured."""


def held_out(run: Run, names: Collection[str]) -> dict[str, Measured]:
    """Bits and bytes of each held-out document, by source: of all sources, since macro is their mean."""
    scores = _held_out_texts(run).scores(run)
    return {
        name: Measured(one.nll / math.log(2), one.num_bytes.astype(np.float64)) for name, one in sorted(scores.items())
    }


def suites(run: Run, names: Collection[str]) -> dict[str, Measured]:
    """What each item of the suites lacks of a right answer."""
    job = _asked_suites(run)
    questions = replace(job.questions, suites=[job.suite(name) for name in sorted(names)], facts={}, prompts=[])
    answers = ask(questions, job.tasks, job.model, run.config).suites
    problems = [f"suite '{name}' can't be run: {one.not_run}" for name, one in answers.items() if one.not_run]
    if problems:
        raise UserError(problems)
    return {
        name: Measured(
            1 - one.values if one.higher_is_better else one.values, np.ones(len(one.values)), tuple(one.keys)
        )
        for name, one in answers.items()
    }


def positions(run: Run, names: Collection[str]) -> dict[str, Measured]:
    """Nats and tokens of each long document in buckets of positions."""
    buckets = {name: found for name in sorted(names) if (found := bucket(name)) is not None}
    material = _position_material(run, list(buckets.values()))
    scores = inside.bucket_scores(material, run.engine.nll, _ranks(run))
    result = {}
    for name, pair in buckets.items():
        ids, nll, tokens = scores[pair]
        result[name] = Measured(nll, tokens.astype(np.float64), ids)
    return result


def long_tasks(run: Run, names: Collection[str]) -> dict[str, Measured]:
    """What each item of synthetic tasks lacks of a right choice."""
    tasks = {name: _task(name) for name in sorted(names)}
    items = _prompts(run, list(tasks.values()))
    scores = inside.choices(items, _encoder(run), run.engine.nll, _ranks(run))
    return {
        name: Measured(1 - scores[key], np.ones(len(scores[key])), tuple(inside.item_id(item) for item in items[key]))
        for name, key in tasks.items()
    }


MEASURES: dict[str, Measurement] = {
    HELD_OUT: held_out,
    SUITES: suites,
    POSITIONS: positions,
    LONG_TASKS: long_tasks,
}
"""One for each name of `gate_config.MEASUREMENTS`."""


def asked_for(run: Run, gates: Iterable[GateConfig]) -> dict[str, set[str]]:
    """Measurement -> names of what `gates` ask of it."""
    found: dict[str, set[str]] = {}
    for gate in gates:
        for measurement, margins in gate.margins.items():
            if margins:
                names = (
                    [one.name for one in _asked_suites(run).questions.suites] if margins == NON_INFERIOR else margins
                )
                found.setdefault(measurement, set()).update(names)
    return found


def margins_of(run: Run, gate: GateConfig, now: Mapping[str, Mapping[str, Measured]]) -> dict[str, dict[str, float]]:
    """The margins of `gate` as numbers: those that suites declare themselves in the place of `non_inferior`."""
    settings = run.config.evaluation
    judge = Judge(settings.confidence, settings.bootstrap, run.config.seed, run.config.suites.margin)

    def number(name: str, margin: Any) -> float:
        if margin == NON_INFERIOR:
            return judge.margin_of(_asked_suites(run).suite(name), len(now[SUITES][name].values))
        return float(margin)

    return {
        measurement: {
            name: number(name, margin)
            for name, margin in (
                dict.fromkeys(now[measurement], NON_INFERIOR) if margins == NON_INFERIOR else margins
            ).items()
        }
        for measurement, margins in gate.margins.items()
        if margins
    }


def prepare(run: Run, position: int) -> None:
    """Read what the gates that a run at `position` has before it will measure with, before any step is made.

    Raises UserError, on every rank, with all that can't be measured and why.
    """
    problems: list[str] = []
    for index, stage in enumerate(run.config.stages):
        if stage.gate is None or run.order.stage_starts[index + 1] < position:
            continue
        if standing_decision(run.order.entries, stage.name) is not None:
            continue
        try:
            for measurement, names in asked_for(run, [stage.gate]).items():
                _prepare(run, measurement, names)
        except UserError as error:
            problems += [f"stage '{stage.name}' gate: {problem}" for problem in error.problems]
    found = [one for part in run.world.gather(problems) for one in part]
    if found:
        raise UserError(list(dict.fromkeys(found)))


def _prepare(run: Run, measurement: str, names: Collection[str]) -> None:
    problems: list[str] = []
    if measurement == HELD_OUT:
        there = _held_out_texts(run).sources
        problems = [
            f"nothing of '{name}' is held out, so {HELD_OUT} can't measure it; raise data.held_out_fraction and "
            "prepare it again, or take it out of the gate"
            for name in sorted(names)
            if name not in there and name != MACRO
        ]
    elif measurement == SUITES:
        job = _asked_suites(run)
        known = [one.name for one in job.questions.suites]
        for name in sorted(names):
            if name not in known:
                problems.append(f"suite '{name}' is none of suites.run; {nearest(name, known)}")
            elif isinstance(reason := job.tasks[name], str):
                problems.append(f"suite '{name}' can't be run: {reason}")
    elif measurement == POSITIONS:
        _position_material(run, [found for name in sorted(names) if (found := bucket(name)) is not None])
    elif measurement == LONG_TASKS:
        _prompts(run, [_task(name) for name in sorted(names)])
    if problems:
        raise UserError(problems)


def _kept(run: Run, key: Any, make: Callable[[], Any]) -> Any:
    if key not in run.material:
        run.material[key] = make()
    return run.material[key]


def _held_out_texts(run: Run) -> HeldOut:
    found: HeldOut = _kept(run, HELD_OUT, lambda: HeldOut(run))
    return found


def _asked_suites(run: Run) -> JobSuites:
    return suites_of(run)


def _encoder(run: Run) -> DocumentEncoder:
    found: DocumentEncoder = _kept(
        run, "encoder", lambda: DocumentEncoder(run.config.data.tokenizer, run.config.data.separator)
    )
    return found


def _position_material(run: Run, buckets: list[tuple[int, int]]) -> inside.PositionMaterial:
    key = (POSITIONS, tuple(buckets))
    found: inside.PositionMaterial = _kept(run, key, lambda: inside.read_documents(run.config, _encoder(run), buckets))
    return found


def _prompts(run: Run, tasks: list[tuple[str, int]]) -> dict[tuple[str, int], Any]:
    key = (LONG_TASKS, tuple(tasks))
    found: dict[tuple[str, int], Any] = _kept(run, key, lambda: inside.make_prompts(run.config, _encoder(run), tasks))
    return found


def _task(name: str) -> tuple[str, int]:
    task, _, length = name.partition("/")
    return task, int(length)


def _ranks(run: Run) -> inside.Ranks:
    def sum_over_ranks(values: np.ndarray) -> np.ndarray:
        return run.world.sum(torch.from_numpy(values)).cpu().numpy()

    context = run.engine.context.now
    return inside.Ranks(context.data_rank, context.data_size, sum_over_ranks)
