"""Checks of what the model learns and forgets: forgetting, missing replay, slow convergence, plateau, instability, and
whether the learning rate was the planned one.

Noise is told from change by windows of steps and their standard errors. Borders are constants here; where one has no
source it is a heuristic. Each check is a function of a case.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from statistics import fmean, median, stdev
from typing import Any

from cpt_dist.doctor.case import Case, StagePlace, stage_places
from cpt_dist.doctor.findings import (
    FOUND,
    SEVERE,
    WARNING,
    Change,
    Finding,
    healthy,
    not_enough,
)
from cpt_dist.errors import UserError
from cpt_dist.mixture_knots import mixture_knots
from cpt_dist.nested_mixture import outer_mixture
from cpt_dist.schedules import run_learning_rate
from cpt_dist.training.guards import robust_z

FORGOTTEN, FORGOTTEN_SEVERE = 0.02, 0.05
"""Relative rise of a general source's held-out bits per byte."""
STABILITY_GAP = 0.05
"""Part of a run in which a rise may pass by itself (Guo et al. 2024, arXiv 2406.14833)."""
LEAST_STEPS = 40
LEAST_DROP = 0.01
"""Part of the domain loss that a run takes off in a fifth of its steps, if it converges."""
FLAT_DROP = 0.002
"""Part of the domain loss below which nothing happens between two windows a third of the run apart."""
DECAYED = 0.2
"""Of the peak: a plateau below this learning rate is what a schedule is for."""
SPIKE = 6.0
"""Robust standard deviations above the median of the steps before."""
SPIKE_WINDOW = 64
GROWN = 3.0
"""Times that the gradient norm's median grew between the second and the last quarter of the steps."""
RATE_TOLERANCE = 1e-3
REPLAY_STEPS = (0.05, 0.25, 0.5)
"""Shares of replay to go to: same language, another language (Ibrahim et al. 2024, arXiv 2403.08763), and beyond."""


def _numbers(records: Sequence[dict[str, Any]], key: str) -> list[float]:
    values = [record.get(key) for record in records]
    return [float(v) for v in values if isinstance(v, (int, float)) and math.isfinite(v)]


def _shares(case: Case, place: StagePlace) -> dict[str, float]:
    """Shares of the sources at the end of a stage's mixture; empty where it can't be read."""
    mixture = outer_mixture(place.stage.mixture)
    try:
        _, shares = mixture_knots(mixture)
    except UserError:
        return {}
    return dict(zip(mixture, shares[-1], strict=True))


def _more_replay(case: Case) -> list[Change]:
    """A larger share of replay in the stage of the newest step, and a controller that keeps it right."""
    place = case.stage
    changes = []
    shares = _shares(case, place) if place else {}
    general = [name for name in shares if name in case.sources("replay")]
    present = sum(shares[name] for name in general)
    target = next((one for one in REPLAY_STEPS if one > present + 1e-9), None)
    if place and general and target is not None:
        rest = 1 - present
        to = {
            name: round(
                (target * (share / present if present else 1 / len(general)))
                if name in general
                else (1 - target) * share / rest,
                4,
            )
            for name, share in shares.items()
        }
        now = {name: round(share, 4) for name, share in shares.items()}
        why = f"replay from {present:.0%} to {target:.0%} of tokens"
        changes.append(Change(f"{place.key}.mixture", now, to, why))
    if general and case.config.replay.rule == "off":
        changes.append(Change("replay.rule", "off", "bounded", "the share then follows held-out general text"))
        if not case.config.evaluation.every_steps and case.num_steps:
            every = max(1, case.num_steps // 20)
            changes.append(Change("evaluation.every_steps", 0, every, "the controller decides on evaluations"))
    return changes


def _lower_rate(case: Case, factor: float, why: str) -> list[Change]:
    peak = case.peak_lr()
    return [Change(case.schedule_key(), peak, float(f"{peak * factor:.3g}"), why)] if peak else []


def severe_forgetting(case: Case) -> Finding:
    """Held-out bits per byte of general sources against the first evaluation."""
    name = "severe forgetting"
    general = case.sources("replay")
    if len(case.log.evaluations) < 2:
        return not_enough(name, "fewer than two evaluations; set evaluation.during_training=true and every_steps")
    first, last = case.log.evaluations[0], case.log.evaluations[-1]
    both = [one for one in general if one in first["sources"] and one in last["sources"]]
    if not both:
        return not_enough(name, "no source with role replay was evaluated, so what is forgotten isn't measured")
    rises = {}
    for source in both:
        before = first["sources"][source]["bits_per_byte"]
        rises[source] = last["sources"][source]["bits_per_byte"] / before - 1
    worst = max(rises, key=lambda one: rises[one])
    line = (
        f"'{worst}': {first['sources'][worst]['bits_per_byte']:.4f} bits per byte at step {first['step']}, "
        f"{last['sources'][worst]['bits_per_byte']:.4f} at step {last['step']} ({rises[worst]:+.1%})"
    )
    if rises[worst] <= FORGOTTEN:
        return healthy(name, line, rises=rises)
    evidence = [line]
    severity = SEVERE if rises[worst] > FORGOTTEN_SEVERE else WARNING
    if case.num_steps and last["step"] / case.num_steps <= STABILITY_GAP:
        severity = WARNING
        evidence.append(f"within the first {STABILITY_GAP:.0%} of the run this may be the stability gap, which passes")
    changes = [*_more_replay(case), *_lower_rate(case, 1 / 3, "the peak is the dial between learning and forgetting")]
    return Finding(name, FOUND, tuple(evidence), severity, tuple(changes), numbers={"rises": rises})


def missing_replay(case: Case) -> Finding:
    """Whether any stage reads general text."""
    name = "missing replay"
    places = case.places
    if not places:
        return not_enough(name, "no stage is known")
    general = set(case.sources("replay"))
    without = [place for place in places if not any(_shares(case, place).get(one, 0) > 0 for one in general)]
    if not without:
        return healthy(name)
    evidence = tuple(f"stage '{place.stage.name}' reads no source with role replay" for place in without)
    changes = []
    for place in without:
        now = outer_mixture(place.stage.mixture)
        shares = {one: round(0.95 * share, 4) for one, share in _shares(case, place).items() if one not in general}
        added = {one: round(0.05 / len(general), 4) for one in sorted(general)} or {"YOUR_GENERAL_SOURCE": 0.05}
        why = "5% within a language, 25% for another one (Ibrahim et al. 2024, arXiv 2403.08763)"
        changes.append(Change(f"{place.key}.mixture", now, shares | added, why))
    return Finding(name, FOUND, evidence, WARNING, tuple(changes))


def _domain_loss(case: Case, window: Sequence[dict[str, Any]]) -> tuple[float, float] | None:
    """Mean over domain sources of their mean loss in a window, and its standard error."""
    means, variances = [], []
    for source in case.sources("domain"):
        values = [r["loss_by_source"][source] for r in window if source in r.get("loss_by_source", {})]
        values = [value for value in values if math.isfinite(value)]
        if len(values) < 5:
            continue
        means.append(fmean(values))
        variances.append(stdev(values) ** 2 / len(values))
    return (fmean(means), math.sqrt(sum(variances)) / len(variances)) if means else None


def _drop(before: tuple[float, float], after: tuple[float, float]) -> tuple[float, float]:
    """Relative drop from one window to another, and its standard error."""
    error = math.hypot(before[1], after[1]) / before[0]
    return (before[0] - after[0]) / before[0], error


def _windows(case: Case) -> tuple[list[dict], list[dict], list[dict]]:
    """The first, the middle (two thirds through) and the last window of the recorded steps."""
    size = max(10, len(case.steps) // 10)
    end = len(case.steps) - len(case.steps) // 3
    return case.steps[:size], case.steps[end - size : end], case.steps[-size:]


def _enough_for_convergence(case: Case, name: str, least_progress: float) -> Finding | None:
    if len(case.steps) < LEAST_STEPS:
        return not_enough(name, f"{len(case.steps)} recorded steps; at least {LEAST_STEPS} are needed")
    if case.progress is None or case.progress < least_progress:
        return not_enough(name, f"less than {least_progress:.0%} of the planned steps are done")
    return None


def slow_convergence(case: Case) -> Finding:
    """Whether the domain loss has fallen at all by a fifth of the run."""
    name = "slow convergence"
    missing = _enough_for_convergence(case, name, 0.2)
    first, _, last = _windows(case)
    before, after = _domain_loss(case, first), _domain_loss(case, last)
    if missing or before is None or after is None:
        return missing or not_enough(name, "the metrics have no loss of a domain source")
    drop, error = _drop(before, after)
    line = (
        f"domain loss {before[0]:.4f} in steps {first[0]['step']} to {first[-1]['step']}, {after[0]:.4f} in steps "
        f"{last[0]['step']} to {last[-1]['step']}: {drop:.2%} off, standard error {error:.2%}"
    )
    numbers = {"drop": drop, "standard_error": error}
    if drop - 2 * error >= LEAST_DROP:
        return healthy(name, line, **numbers)
    if drop + 2 * error >= LEAST_DROP:
        return not_enough(name, line, f"too noisy to tell it from {LEAST_DROP:.0%}")
    changes = _lower_rate(case, 3.0, "the peak bounds what is learned from each token")
    shares = _shares(case, case.stage) if case.stage else {}
    domain = sum(shares.get(one, 0.0) for one in case.sources("domain"))
    advice = ["ask launch/diagnose.py whether the model can learn from this text at all"]
    if domain < 0.5:
        advice.append(f"only {domain:.0%} of tokens are domain text")
    return Finding(name, FOUND, (line,), WARNING, tuple(changes), tuple(advice), numbers)


def plateau(case: Case) -> Finding:
    """Whether the domain loss fell and has stopped falling, with much of the run and of the learning rate left."""
    name = "plateau"
    missing = _enough_for_convergence(case, name, 0.2)
    first, middle, last = _windows(case)
    values = [_domain_loss(case, window) for window in (first, middle, last)]
    start, before, after = values
    if missing or start is None or before is None or after is None:
        return missing or not_enough(name, "the metrics have no loss of a domain source")
    total, _ = _drop(start, after)
    drop, error = _drop(before, after)
    line = (
        f"domain loss {before[0]:.4f} in steps {middle[0]['step']} to {middle[-1]['step']}, {after[0]:.4f} in steps "
        f"{last[0]['step']} to {last[-1]['step']}: {drop:.2%} off, standard error {error:.2%}"
    )
    numbers = {"drop": drop, "standard_error": error, "drop_since_start": total}
    if drop - 2 * error >= FLAT_DROP:
        return healthy(name, line, **numbers)
    if total < LEAST_DROP:
        return healthy(name, "the loss hardly fell from the start, which is slow convergence", **numbers)
    rates = _numbers(last, "lr")
    peak = max(_numbers(case.steps, "lr"), default=0.0)
    if (case.progress or 1.0) > 0.8 or (rates and peak and rates[-1] <= DECAYED * peak):
        return healthy(name, f"{line}, where the run or its learning rate ends", **numbers)
    if drop + 2 * error >= FLAT_DROP:
        return not_enough(name, line, f"too noisy to tell it from {FLAT_DROP:.1%}")
    place = case.stage
    changes = []
    if place:
        done = case.steps[-1].get("samples", 0) - place.start
        tokens = math.ceil(1.1 * done * place.stage.seq_len)
        why = "end soon, with the decay of the schedule, and keep the rest of the budget"
        changes.append(Change(f"{place.key}.tokens", place.stage.tokens, str(tokens), why))
    advice = ("more different text helps where readings repeat: launch/plan.py what=data shows the epochs",)
    return Finding(name, FOUND, (line,), WARNING, tuple(changes), advice, numbers)


def _spikes(case: Case) -> list[tuple[int, float, float]]:
    """Step, loss and median of the losses before it in its stage, for every loss that leaps above them."""
    found = []
    window: deque[float] = deque(maxlen=SPIKE_WINDOW)
    stage = None
    for record in case.steps:
        if record.get("stage") != stage:
            stage = record.get("stage")
            window.clear()
        loss = record.get("loss")
        if not isinstance(loss, (int, float)) or not math.isfinite(loss):
            continue
        if len(window) >= SPIKE_WINDOW // 2 and robust_z(loss, window) > SPIKE:
            found.append((record["step"], float(loss), median(window)))
        window.append(float(loss))
    return found


def instability(case: Case) -> Finding:
    """Spikes of the loss, a growing gradient norm, steps that were skipped, a run that stopped on bad numbers."""
    name = "instability"
    if len(case.steps) < LEAST_STEPS and not case.skips and case.bad_numbers is None:
        return not_enough(name, f"{len(case.steps)} recorded steps; at least {LEAST_STEPS} are needed")
    evidence, severity = [], WARNING
    spikes = _spikes(case)
    if spikes:
        step, loss, usual = max(spikes, key=lambda one: one[1] / one[2])
        evidence.append(
            f"{len(spikes)} spikes; at step {step} the loss is {loss:.3f}, the median before it {usual:.3f}"
        )
    norms = _numbers(case.steps, "grad_norm")
    quarter = len(norms) // 4
    growth = None
    if quarter >= 10:
        early, late = median(norms[quarter : 2 * quarter]), median(norms[-quarter:])
        growth = late / early if early > 0 else None
        if growth is not None and growth >= GROWN:
            evidence.append(f"the gradient norm's median grew from {early:.3g} to {late:.3g}, {growth:.1f} times")
    if case.skips:
        steps = [one.get("step") for one in case.skips]
        evidence.append(f"{len(steps)} steps were skipped, the newest step {steps[-1]}: {case.skips[-1].get('reason')}")
    if case.bad_numbers is not None:
        severity = SEVERE
        steps = [one.get("step") for one in case.bad_numbers.get("bad_steps", [])]
        evidence.append(f"the run stopped on bad numbers at steps {steps}; bad_numbers.json names the documents")
    numbers = {"spikes": len(spikes), "grad_norm_growth": growth, "skipped_steps": len(case.skips)}
    if not evidence:
        return healthy(name, **numbers)
    config = case.config
    changes = _lower_rate(case, 1 / 3, "a lower peak is the first remedy")
    if not config.guards.spike_threshold and spikes:
        changes.append(Change("guards.spike_threshold", 0.0, 8.0, "spikes are skipped, then gone back from"))
    if not config.optimizer.max_grad_norm:
        changes.append(Change("optimizer.max_grad_norm", 0.0, 1.0, "clipping is off"))
    place = case.stage
    schedule = (place.stage.schedule if place else None) or config.schedule
    if schedule.warmup < 0.01:
        key = case.schedule_key().replace("peak_lr", "warmup")
        changes.append(Change(key, schedule.warmup, 0.01, "Adam's second moments need some steps"))
    return Finding(name, FOUND, tuple(evidence), severity, tuple(changes), numbers=numbers)


def learning_rate_off_plan(case: Case) -> Finding:
    """Each recorded learning rate against the schedule of the start that made the step."""
    name = "learning rate off plan"
    if case.has_forked:
        return not_enough(name, "the run has forked, so its stages are not those of one configuration")
    checked, off = 0, []
    curves: dict[int, Any] = {}
    for record in case.steps:
        config = case.config_of(record["step"])
        if config is None or "samples" not in record or not isinstance(record.get("lr"), (int, float)):
            continue
        if id(config) not in curves:
            curves[id(config)] = (stage_places(config, case.order), run_learning_rate(config))
        places, curve = curves[id(config)]
        place = next((one for one in places if one.stage.name == record.get("stage")), None)
        if place is None:
            continue
        planned = curve(places.index(place), (record["samples"] - place.start) / place.num_samples)
        checked += 1
        if abs(record["lr"] - planned) > RATE_TOLERANCE * max(abs(planned), 1e-12):
            off.append((record["step"], record["lr"], planned))
    if not checked:
        return not_enough(name, "no recorded step whose configuration is known (starts/, metrics.jsonl)")
    if not off:
        return healthy(name, f"{checked} steps as planned", checked=checked)
    step, was, planned = off[0]
    evidence = f"{len(off)} of {checked} steps; first step {step}: {was:.4g} was used, {planned:.4g} was planned"
    advice = (
        "metrics.jsonl holds what the optimizer used: compare starts/*.yaml (a schedule changed between two starts, a "
        "stage made longer), and look for another scheduler in a DeepSpeed configuration of your own",
    )
    return Finding(name, FOUND, (evidence,), SEVERE, advice=advice, numbers={"checked": checked, "off": len(off)})


CHECKS = (
    severe_forgetting,
    missing_replay,
    slow_convergence,
    plateau,
    instability,
    learning_rate_off_plan,
)
