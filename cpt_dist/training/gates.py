"""Gates at the ends of stages: measure, decide once, write it down, act.

Every rank measures the same and rank 0 decides; the decision is an entry of ledger.jsonl before anything follows from
it, so a run that is taken up again doesn't measure again, and a new run with the same ledger takes the same way. What
a verdict leads to is the configuration's, so a stopped run is let through by changing that.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from cpt_dist.config import StageConfig
from cpt_dist.data.gate_decision import FAIL, PASS, UNDECIDED, GateDecision
from cpt_dist.data.ledger_entry import Entry, LedgerEntry, write_ledger
from cpt_dist.data.run_order import sample_order
from cpt_dist.data.skip import Skip
from cpt_dist.errors import UserError
from cpt_dist.evaluation.non_inferiority import Comparison, Measured, compare, verdict_of_all
from cpt_dist.files import write_json
from cpt_dist.gate_config import BASE, CONTINUE, FORK, MACRO, STAGE_START, GateConfig
from cpt_dist.training.first_rank import on_first
from cpt_dist.training.gate_measurements import MEASURES
from cpt_dist.training.run import Run

FOLDER = "gates"
Baseline = dict[str, dict[str, Measured]]
"""Measurement -> what of it -> items."""


def keep_baseline(run: Run, against: str, stage: StageConfig | None = None) -> None:
    """Measure the model as it is now and keep the result for the gates that compare with it, if there are any.

    To be called on every rank; `stage` is the one whose start this is. What is kept already is not measured again.
    """
    gates = [one.gate for one in run.config.stages if one.gate is not None and stage in (None, one)]
    wanted = sorted({name for gate in gates if gate.against == against for name in gate.margins})
    name = _file_name(against, stage)
    path = run.directory.path / FOLDER / name
    if not wanted or on_first(run.world, lambda: set(wanted) <= set(_read(path))):
        return
    run.activity.enter("evaluation")
    found = {measurement: MEASURES[measurement](run) for measurement in wanted}
    record = {
        measurement: {what: {"values": m.values.tolist(), "weights": m.weights.tolist()} for what, m in parts.items()}
        for measurement, parts in found.items()
    }

    def write() -> None:
        path.parent.mkdir(exist_ok=True)
        write_json(path, {"position": run.position, "measured": record})

    on_first(run.world, write)


def _file_name(against: str, stage: StageConfig | None) -> str:
    return f"{against}.json" if stage is None else f"{against}-{stage.name}.json"


def _read(path: Any) -> Baseline:
    if not path.is_file():
        return {}
    record = json.loads(path.read_text(encoding="utf-8"))["measured"]
    return {
        measurement: {what: Measured(np.array(one["values"]), np.array(one["weights"])) for what, one in parts.items()}
        for measurement, parts in record.items()
    }


def decide_gate(run: Run, index: int) -> GateDecision | None:
    """What the gate of stage `index`, whose last step is done, leads to now; None where there is no gate.

    A verdict that the ledger has is not found again. Its action is that of the present configuration, so a run that
    stopped goes on when that is changed. After a fork the run has to be set up again.
    """
    stage = run.config.stages[index]
    gate = stage.gate
    if gate is None:
        return None
    found = [one for one in run.order.entries if isinstance(one, GateDecision) and one.stage == stage.name]
    decision = found[-1] if found else _decide(run, index, gate)
    action = _action(gate, decision.verdict)
    if action == decision.action:
        return decision
    changed = replace(decision, action=action)
    if action == FORK:
        changed = _fork(run, index, gate, decision)
    return _shared(run, lambda: _entered(run, changed))


def refusal(run: Run, decision: GateDecision) -> str:
    """The line that a run ends with at a gate that stops it."""
    return (
        f"stage '{decision.stage}' is done and its gate is not passed ({decision.verdict}): {decision.reason}; the "
        f"checkpoint of step {run.step} is whole. To go on all the same, set "
        f"on_{'fail' if decision.verdict == FAIL else 'undecided'}: {CONTINUE} (or {FORK}) in the gate and start again"
    )


def _action(gate: GateConfig, verdict: str) -> str:
    return {PASS: CONTINUE, FAIL: gate.on_fail, UNDECIDED: gate.on_undecided}[verdict]


def _decide(run: Run, index: int, gate: GateConfig) -> GateDecision:
    stage = run.config.stages[index]
    run.activity.enter("evaluation")
    run.enter_rope(index)  # a run that was taken up at the edge has not entered the stage
    now = {measurement: MEASURES[measurement](run) for measurement in gate.margins}

    def decide() -> GateDecision | list[str]:
        try:
            comparisons = _comparisons(run, stage, gate, now)
        except UserError as error:
            return error.problems
        verdict = verdict_of_all(comparisons)
        reason = "; ".join(one.in_words() for one in comparisons)
        evidence = {"step": run.step, "against": gate.against, "measured": [asdict(one) for one in comparisons]}
        decision = GateDecision(run.position, stage.name, verdict, _action(gate, verdict), reason, evidence)
        if decision.action == FORK:
            decision = _fork(run, index, gate, decision)
        return _entered(run, decision)

    return _shared(run, decide)


def _shared(run: Run, decide: Callable[[], GateDecision | list[str]]) -> GateDecision:
    """What rank 0 decides, in the order of every rank; UserError on each where it came to problems."""
    outcome = on_first(run.world, decide)
    if isinstance(outcome, list):
        raise UserError(outcome)
    if outcome.action != FORK:
        run.order = sample_order(run.config, run.sources, [*run.order.entries, outcome])
    return outcome


def _comparisons(
    run: Run, stage: StageConfig, gate: GateConfig, now: Mapping[str, Mapping[str, Measured]]
) -> list[Comparison]:
    path = run.directory.path / FOLDER / _file_name(gate.against, stage if gate.against == STAGE_START else None)
    before, result, problems = _read(path), [], []
    for measurement, margins in gate.margins.items():
        then = before.get(measurement, {})
        where = f"stage '{stage.name}' gate"
        if not then:
            problems.append(
                f"{where}: {measurement} was not measured at the {gate.against.replace('_', ' ')}, which this run has "
                f"passed; compare with against: {BASE}, or take the gate out"
            )
            continue
        others = [name for name, one in now[measurement].items() if not _same_items(one, then.get(name))]
        missing = [name for name in margins if name != MACRO and name not in now[measurement]]
        if others:
            problems.append(
                f"{where}: {measurement} of {', '.join(others)} has other items than '{path}'; set "
                "evaluation.max_tokens and the shards back, or take the gate out"
            )
        problems += [f"{where}: nothing of '{name}' is held out, so {measurement} can't measure it" for name in missing]
        if not others and not missing:
            settings = run.config.evaluation
            result += compare(
                now[measurement],
                then,
                margins,
                confidence=settings.confidence,
                num_resamples=settings.bootstrap,
                seed=run.config.seed,
            )
    if problems:
        raise UserError(problems)
    return result


def _same_items(now: Measured, then: Measured | None) -> bool:
    return then is not None and np.array_equal(now.weights, then.weights)


def _fork(run: Run, index: int, gate: GateConfig, found: GateDecision) -> GateDecision:
    """The decision that takes stage `index` out of the plan, with the ledger's entries that go with it."""
    back_to = int(run.order.stage_starts[index])
    given_up = [{"kind": one.kind, **asdict(one)} for one in run.order.entries if _given_up(one, back_to)]
    evidence = {**found.evidence, **({"given_up": given_up} if given_up else {})}
    return GateDecision(found.n_start, found.stage, found.verdict, FORK, found.reason, evidence, back_to, gate.fork_to)


def _given_up(entry: Entry, back_to: int) -> bool:
    """Whether an entry is about samples of the branch that a fork gives up."""
    if isinstance(entry, (LedgerEntry, Skip)):
        return entry.n_start >= back_to
    return isinstance(entry, GateDecision) and entry.n_start > back_to


def _entered(run: Run, decision: GateDecision) -> GateDecision:
    """The decision, on disk when this returns."""
    entries: list[Entry] = [*run.order.entries, decision]
    if decision.back_to is not None:
        entries = [*(one for one in run.order.entries if not _given_up(one, decision.back_to)), decision]
    write_ledger(run.directory.ledger, entries)
    run.directory.append_metrics(
        {
            "kind": "gate",
            "step": run.step,
            "stage": decision.stage,
            "verdict": decision.verdict,
            "action": decision.action,
            "reason": decision.reason,
            "back_to": decision.back_to,
            "fork_to": decision.fork_to,
            "measured": decision.evidence.get("measured"),
            "time": time.time(),
        }
    )
    print(f"gate of stage '{decision.stage}': {decision.verdict}, {decision.action}; {decision.reason}", flush=True)
    return decision
