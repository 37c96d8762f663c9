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
from pathlib import Path
from typing import Any

import numpy as np

from cpt_dist.config import StageConfig
from cpt_dist.data.gate_decision import FAIL, PASS, UNDECIDED, GateDecision, standing_decision
from cpt_dist.data.ledger_entry import Entry, LedgerEntry, write_ledger
from cpt_dist.data.run_order import sample_order
from cpt_dist.data.skip import Skip
from cpt_dist.errors import UserError
from cpt_dist.evaluation.non_inferiority import Comparison, Measured, compare, verdict_of_all
from cpt_dist.files import write_json
from cpt_dist.forgetting_config import has_budget
from cpt_dist.gate_config import (
    BASE,
    CONTINUE,
    FORK,
    HELD_OUT,
    LONG_TASKS,
    MACRO,
    POSITIONS,
    RUN_START,
    STAGE_START,
    SUITES,
    GateConfig,
)
from cpt_dist.plans_of_run import all_stages
from cpt_dist.training.first_rank import on_first
from cpt_dist.training.gate_measurements import MEASURES, asked_for, margins_of
from cpt_dist.training.run import Run

FOLDER = "gates"
Baseline = dict[str, dict[str, Measured]]
"""Measurement -> what of it -> items."""


def keep_baseline(run: Run, against: str, stage: StageConfig | None = None) -> None:
    """Measure the model as it is now and keep the result for the gates that compare with it, if there are any.

    To be called on every rank; `stage` is the one whose start this is. What is kept already is not measured again.
    """
    # Where a run began is not to be had later, so it is measured for the stages of its alternatives as well.
    stages = all_stages(run.given) if against == RUN_START else run.config.stages
    gates = [one.gate for one in stages if one.gate is not None and stage in (None, one)]
    wanted = asked_for(run, [gate for gate in gates if gate.against == against])
    if against == RUN_START and has_budget(run.config.forgetting):
        wanted.setdefault(HELD_OUT, set())
    path = baseline_path(run, against, stage)

    def missing() -> dict[str, list[str]]:
        kept = read_baseline(path)
        parts = {HELD_OUT: {MACRO, *kept.get(HELD_OUT, {})}}  # of held-out text all that there is was measured
        return {
            measurement: sorted(names)
            for measurement, names in wanted.items()
            if measurement not in kept or names - parts.get(measurement, kept[measurement].keys())
        }

    lacking = on_first(run.world, missing) if wanted else {}
    if not lacking:
        return
    run.activity.enter("evaluation")
    found = {measurement: MEASURES[measurement](run, names) for measurement, names in lacking.items()}

    def write() -> None:
        path.parent.mkdir(exist_ok=True)
        record = json.loads(path.read_text(encoding="utf-8"))["measured"] if path.is_file() else {}
        for measurement, parts in found.items():
            record.setdefault(measurement, {}).update({what: _record(one) for what, one in parts.items()})
        write_json(path, {"position": run.position, "measured": record})

    on_first(run.world, write)


def _record(one: Measured) -> dict[str, Any]:
    record: dict[str, Any] = {"values": one.values.tolist(), "weights": one.weights.tolist()}
    return record | ({"ids": list(one.ids)} if one.ids else {})


def baseline_path(run: Run, against: str, stage: StageConfig | None = None) -> Path:
    """Where `keep_baseline` keeps what it measured."""
    return run.directory.path / FOLDER / _file_name(against, stage)


def _file_name(against: str, stage: StageConfig | None) -> str:
    return f"{against}.json" if stage is None else f"{against}-{stage.name}.json"


def read_baseline(path: Path) -> Baseline:
    """What a file of `keep_baseline` holds; nothing where there is none."""
    if not path.is_file():
        return {}
    record = json.loads(path.read_text(encoding="utf-8"))["measured"]
    return {
        measurement: {
            what: Measured(np.array(one["values"]), np.array(one["weights"]), tuple(one.get("ids", ())))
            for what, one in parts.items()
        }
        for measurement, parts in record.items()
    }


def forget_after(run: Run, position: int) -> None:
    """Take away, on rank 0, what was measured at starts of stages behind sample `position`: the run has gone back.

    Their models will be others when the run comes there again.
    """
    for path in sorted((run.directory.path / FOLDER).glob(f"{STAGE_START}-*.json")):
        if int(json.loads(path.read_text(encoding="utf-8"))["position"]) > position:
            path.unlink()


def decide_gate(run: Run, index: int) -> GateDecision | None:
    """What the gate of stage `index`, whose last step is done, leads to now; None where there is no gate.

    A verdict that the ledger has is not found again, unless the run went back behind it since. Its action is that of
    the present configuration, so a run that stopped goes on when that is changed. After a fork the run has to be set up
    again.
    """
    stage = run.config.stages[index]
    gate = stage.gate
    if gate is None:
        return None
    decision = standing_decision(run.order.entries, stage.name) or _decide(run, index, gate)
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
    now = {measurement: MEASURES[measurement](run, names) for measurement, names in asked_for(run, [gate]).items()}
    margins = margins_of(run, gate, now)

    def decide() -> GateDecision | list[str]:
        try:
            comparisons = _comparisons(run, stage, gate, now, margins)
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
    run: Run,
    stage: StageConfig,
    gate: GateConfig,
    now: Mapping[str, Mapping[str, Measured]],
    margins: Mapping[str, Mapping[str, float]],
) -> list[Comparison]:
    path = baseline_path(run, gate.against, stage if gate.against == STAGE_START else None)
    before, result, problems = read_baseline(path), [], []
    where, start = f"stage '{stage.name}' gate", gate.against.replace("_", " ")
    for measurement, asked in margins.items():
        then, found = before.get(measurement, {}), now[measurement]
        unmeasured = [name for name in found if name not in then] if measurement != HELD_OUT or not then else []
        if unmeasured:
            what = measurement if not then else f"{measurement} of {', '.join(unmeasured)}"
            problems.append(
                f"{where}: {what} was not measured at the {start}, which this run has passed; compare with "
                f"against: {BASE}, or take it out of the gate"
            )
            continue
        others = [name for name, one in found.items() if not one.same_items(then.get(name))]
        missing = [name for name in asked if name != MACRO and name not in found]
        if others:
            problems.append(
                f"{where}: {measurement} of {', '.join(others)} has other items than '{path}'; set "
                f"{_ITEMS[measurement]} back, or take it out of the gate"
            )
        problems += [f"{where}: nothing of '{name}' is held out, so {measurement} can't measure it" for name in missing]
        if not others and not missing:
            settings = run.config.evaluation
            result += compare(
                found,
                then,
                asked,
                confidence=settings.confidence,
                num_resamples=settings.bootstrap,
                seed=run.config.seed,
            )
    if problems:
        raise UserError(problems)
    return result


_ITEMS = {
    HELD_OUT: "evaluation.max_tokens and the shards",
    SUITES: "the suites' files and suites.limit",
    POSITIONS: "evaluation.long_context and its documents",
    LONG_TASKS: "evaluation.long_context, its documents and the seed",
}
"""What the items of a measurement hang on."""


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
