"""Suites and facts asked of the model in training, where it lies, on all ranks together.

The engine lends its logits; nothing is copied, gathered or exported, and the training trajectory stays as it was. What
can't be had on one rank (a task's data) is not run on any, because all must make the same forwards.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cpt_dist.config import parse_quantity
from cpt_dist.errors import UserError, nearest
from cpt_dist.evaluation.suites.answers import Answerer
from cpt_dist.evaluation.suites.probes import means_by_kind
from cpt_dist.evaluation.suites.run import UNLIMITED_POSITIONS, Answers, Questions, ask, read_questions
from cpt_dist.evaluation.suites.suite_file import Suite
from cpt_dist.evaluation.suites.tasks import SuiteScores, Tasks, load_tasks
from cpt_dist.evaluation.suites.text_model import TextModel
from cpt_dist.gate_config import SUITES
from cpt_dist.model.folder import max_positions, read_model_config
from cpt_dist.training.callback import Callback
from cpt_dist.training.run import Run, StepResult


@dataclass(frozen=True)
class JobSuites:
    """The suites and facts of a job, and the model in training as something that can be asked."""

    questions: Questions
    tasks: Tasks
    model: TextModel

    def suite(self, name: str) -> Suite:
        """The suite of this name. Raises UserError where there is none."""
        known = {one.name: one for one in self.questions.suites}
        if name not in known:
            raise UserError(f"suite '{name}' is none of suites.run; {nearest(name, known)}")
        return known[name]


def suites_of(run: Run) -> JobSuites:
    """The suites of the job, read once by every rank. To be called on all of them."""
    if SUITES in run.material:
        found: JobSuites = run.material[SUITES]
        return found
    config = run.config
    questions = read_questions(config)
    tasks = load_tasks(questions.suites, config.suites.task_folders) if questions.suites else {}

    def sum_over_ranks(values: np.ndarray) -> np.ndarray:
        return run.world.sum(torch.from_numpy(values)).cpu().numpy()

    answerer = Answerer(
        run.engine.logits_at,
        max_positions(read_model_config(config.model.path)) or UNLIMITED_POSITIONS,
        parse_quantity(config.evaluate.batch_tokens, "evaluate.batch_tokens"),
        run.world.rank,
        run.world.size,
        sum_over_ranks,
    )
    made = JobSuites(questions, _same_on_all_ranks(run, tasks), TextModel(config.data.tokenizer, answerer))
    run.material[SUITES] = made
    return made


class AskedSuites(Callback):
    """A record of kind `suites` before the first step, every `suites.every_steps` and at the end."""

    def on_start(self, run: Run) -> None:
        self._job = suites_of(run)
        if run.step == 0:
            self._ask(run)

    def after_step(self, run: Run, result: StepResult) -> None:
        if run.finished or result.step % run.config.suites.every_steps == 0:
            self._ask(run)

    def _ask(self, run: Run) -> None:
        run.activity.enter("evaluation")
        answers = ask(self._job.questions, self._job.tasks, self._job.model, run.config)
        if run.world.is_first:
            record = {"kind": "suites", "step": run.step, "time": time.time(), **facts_of(self._job.questions, answers)}
            run.directory.append_metrics(record)


def _same_on_all_ranks(run: Run, tasks: Tasks) -> Tasks:
    """`tasks`, where none of those is left that a rank couldn't load."""
    mine = {name: reason for name, reason in tasks.items() if isinstance(reason, str)}
    lost: dict[str, str] = {}
    for rank, reasons in enumerate(run.world.gather(mine)):
        lost = {name: f"on rank {rank} {reason}" for name, reason in reasons.items()} | lost
    return {name: lost.get(name, found) for name, found in tasks.items()}


def facts_of(questions: Questions, answers: Answers) -> dict[str, Any]:
    """Scores as metrics.jsonl keeps them: of each suite its mean, of each file of facts bits per byte by kind."""
    return {
        "suites": {name: _suite_record(scores) for name, scores in answers.suites.items()},
        "probes": {path: means_by_kind(questions.facts[path], bits) for path, (bits, _) in answers.facts.items()},
    }


def _suite_record(scores: SuiteScores) -> dict[str, Any]:
    if scores.not_run is not None:
        return {"not_run": scores.not_run}
    bits = scores.answer_bits
    return {
        "metric": scores.metric,
        "value": float(scores.values.mean()),
        "chance": float(scores.chance.mean()),
        "items": len(scores.values),
        "answer_bits_per_byte": None if bits is None else float(bits.mean()),
    }
