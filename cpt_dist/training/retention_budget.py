"""The retention budget inside training: how much was forgotten since the start, and what follows where it is too much.

Each evaluation is compared with the one at the run's start, document by document, by the rule of a gate
(`evaluation/non_inferiority.py`): a budget is exceeded where the whole interval of the rise lies above it and the
sign-flip test agrees, so noise between documents does not trip it. Rank 0 judges; all ranks do the same.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from cpt_dist.data.gate_decision import FAIL, PASS
from cpt_dist.data.ledger_entry import LedgerEntry
from cpt_dist.data.view_names import source_of
from cpt_dist.errors import UserError
from cpt_dist.evaluation.bits_per_byte import DocumentScores
from cpt_dist.evaluation.non_inferiority import Comparison, Measured, compare
from cpt_dist.forgetting_config import RAISE_REPLAY, STOP, budgets
from cpt_dist.gate_config import HELD_OUT, RUN_START
from cpt_dist.training.first_rank import on_first
from cpt_dist.training.gates import baseline_path, read_baseline
from cpt_dist.training.run import Run

WITHIN, EXCEEDED, UNDECIDED = "within", "exceeded", "undecided"


class RetentionBudget:
    """The budgets of a run; made once in a job, on every rank."""

    def __init__(self, run: Run) -> None:
        self._action = run.config.forgetting.action
        roles = {source_of(source.name): source.role for source in run.sources}
        self.budgets = budgets(run.config.forgetting, roles)
        """Source -> accepted rise in bits per byte."""
        self._path = baseline_path(run, RUN_START)
        self._start: dict[str, Measured] | None = None

    def judge(self, run: Run, scores: Mapping[str, DocumentScores]) -> list[Comparison]:
        """How each budget stands. Raises UserError, on every rank, where there is nothing that it can be held against.

        `scores` are those of an evaluation, the same on every rank.
        """

        def compared() -> list[Comparison] | list[str]:
            if self._start is None:
                self._start = read_baseline(self._path).get(HELD_OUT, {})
            now = {
                name: Measured(scores[name].nll / math.log(2), scores[name].num_bytes.astype(np.float64))
                for name in self.budgets
                if name in scores
            }
            problems = [self._problem(name, now.get(name), self._start) for name in self.budgets]
            if found := [problem for problem in problems if problem is not None]:
                return found
            settings = run.config.evaluation
            return compare(
                now,
                self._start,
                self.budgets,
                confidence=settings.confidence,
                num_resamples=settings.bootstrap,
                seed=run.config.seed,
            )

        outcome = on_first(run.world, compared)
        if outcome and isinstance(outcome[0], str):
            raise UserError(outcome)
        found: list[Comparison] = outcome
        return found

    def _problem(self, name: str, now: Measured | None, start: Mapping[str, Measured]) -> str | None:
        key = "forgetting.max_bpb_increase"
        if now is None:
            return f"{key}: nothing of '{name}' is held out; raise data.held_out_fraction, or take it out of the budget"
        if name not in start:
            return (
                f"{key}: '{name}' was not scored at the start of this run, which is over; take it out of the "
                "budget, or begin a new run"
            )
        if not now.same_items(start[name]):
            return (
                f"{key}: '{name}' has other held-out documents than at the start of the run ('{self._path}'); set "
                "evaluation.max_tokens and the shards back, or take it out of the budget"
            )
        return None

    @property
    def raises_replay(self) -> bool:
        """Whether adaptive replay is to act on what is exceeded."""
        return self._action == RAISE_REPLAY

    def act(self, run: Run, found: list[Comparison], raised: LedgerEntry | None) -> None:
        """Say what is exceeded, write it down, and stop the run where that is asked for, once it is saved.

        `raised` is the decision of adaptive replay, if it made one.
        """
        over = exceeded(found)
        if not over:
            return
        outcome = "warned"
        if self._action == STOP:
            outcome = "stopped"
            run.refusal = refusal(run, over)
        elif self._action == RAISE_REPLAY:
            outcome = "replay stays" if raised is None else f"replay raised from sample {raised.n_start} on"
        if not run.world.is_first:
            return
        run.directory.append_metrics(
            {
                "kind": "forgetting",
                "step": run.step,
                "action": self._action,
                "outcome": outcome,
                "exceeded": budget_record(over),
                "time": time.time(),
            }
        )
        if self._action != STOP:
            why = "" if self._action != RAISE_REPLAY else f"; {outcome}"
            why += " (replay.high, dwell_steps, a cap or the stage's end)" if outcome == "replay stays" else ""
            print(f"warning: step {run.step}: retention budget exceeded: {in_words(over)}{why}", flush=True)


def exceeded(found: list[Comparison]) -> list[Comparison]:
    """Those whose rise is surely above the budget."""
    return [one for one in found if one.verdict == FAIL]


def budget_record(found: list[Comparison]) -> dict[str, dict[str, Any]]:
    """Source -> rise in bits per byte with its interval, budget and outcome, as metrics.jsonl keeps them."""
    words = {PASS: WITHIN, FAIL: EXCEEDED}
    return {
        one.name: {
            "rise": one.difference,
            "low": one.low,
            "high": one.high,
            "budget": one.margin,
            "outcome": words.get(one.verdict, UNDECIDED),
        }
        for one in found
    }


def in_words(over: list[Comparison]) -> str:
    """What is exceeded, for a line."""
    return "; ".join(
        f"'{one.name}' has surely risen by {one.low:.4f} or more (measured {one.difference:+.4f}), {one.margin:g} bits "
        "per byte are accepted"
        for one in over
    )


def refusal(run: Run, over: list[Comparison]) -> str:
    """The line that a run ends with which a budget stops."""
    return (
        f"retention budget exceeded at step {run.step}: {in_words(over)}; the checkpoint of step {run.step} is whole. "
        "To go on, raise forgetting.max_bpb_increase or set forgetting.action=warn and start again; for less "
        "forgetting begin again with more replay or a lower schedule.peak_lr"
    )
