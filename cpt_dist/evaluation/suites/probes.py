"""What a model knows of single facts, before and after: answers after cloze sentences and questions, both ways.

A fact has several wordings; facts that training saw stand beside controls that it didn't, asked alike. What is
claimed is the difference of the two changes: a model that merely got better at the form of the questions gains on
the controls as well. Facts are resampled, not wordings, because wordings of one fact depend on each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cpt_dist.errors import UserError, nearest
from cpt_dist.evaluation import statistics
from cpt_dist.evaluation.statistics import Estimate
from cpt_dist.evaluation.suites.compare import Judge
from cpt_dist.evaluation.suites.suite_file import first_few, read_jsonl
from cpt_dist.evaluation.suites.text_model import TextModel

TRAINED, CONTROL = "trained", "control"
FORMS = ("cloze", "qa")
DIRECTIONS = ("forward", "reverse")
LEARNED, FORGOT, UNDECIDED = "learned", "forgot", "undecided"
_PROBE_FIELDS = ("form", "direction", "prompt", "answer")
_FACT_FIELDS = ("id", "kind", "probes")


@dataclass(frozen=True)
class Probe:
    """One wording: the model is to go on with `answer` after `prompt`."""

    form: str
    direction: str
    prompt: str
    answer: str


@dataclass(frozen=True)
class Fact:
    """A fact and its wordings."""

    id: str
    kind: str
    """trained: it is in the training data; control: it isn't, and can't be known."""
    probes: list[Probe]


def read_facts(path: Path) -> list[Fact]:
    """The facts of a probe file, one JSON object a line (docs/suites.md). Raises UserError with every mistake."""
    where = f"probes '{path}'"
    facts: list[Fact] = []
    problems: list[str] = []
    for number, row in read_jsonl(where, path):
        found = _fact_problems(row)
        problems.extend(f"{where}: line {number}: {problem}" for problem in found)
        if not found:
            facts.append(Fact(row["id"], row["kind"], [Probe(**probe) for probe in row["probes"]]))
    ids = [fact.id for fact in facts]
    problems.extend(
        f"{where}: id '{one}' is used twice; give each fact its own"
        for one in sorted({one for one in ids if ids.count(one) > 1})
    )
    if not problems and TRAINED not in {fact.kind for fact in facts}:
        problems.append(f"{where}: no fact has kind: {TRAINED}, so there is nothing that could be learned")
    if problems:
        raise UserError(first_few(problems))
    return facts


def _fact_problems(row: dict[str, Any]) -> list[str]:
    problems = [
        f"there is no field '{name}'; {nearest(name, _FACT_FIELDS)}" for name in row if name not in _FACT_FIELDS
    ]
    problems += [f"{name} is missing" for name in _FACT_FIELDS if name not in row]
    if problems:
        return problems
    if not isinstance(row["id"], str) or not row["id"]:
        problems.append(f"id: {row['id']!r} must be a text")
    if row["kind"] not in (TRAINED, CONTROL):
        problems.append(f"kind: {row['kind']!r} is unknown; {nearest(str(row['kind']), (TRAINED, CONTROL))}")
    if not isinstance(row["probes"], list) or not row["probes"]:
        return [*problems, f"probes: {row['probes']!r} must be a list of at least one wording"]
    for probe in row["probes"]:
        if not isinstance(probe, dict) or set(probe) != set(_PROBE_FIELDS):
            problems.append(f"probes: {probe!r} must have exactly the fields {', '.join(_PROBE_FIELDS)}")
            continue
        for name, allowed in (("form", FORMS), ("direction", DIRECTIONS)):
            if probe[name] not in allowed:
                problems.append(f"{name}: {probe[name]!r} is unknown; {nearest(str(probe[name]), allowed)}")
        if not all(isinstance(probe[name], str) and probe[name].strip() for name in ("prompt", "answer")):
            problems.append(f"probes: {probe!r} must have a prompt and an answer")
    return problems


def score_facts(facts: Sequence[Fact], model: TextModel) -> tuple[np.ndarray, np.ndarray]:
    """(bits per byte of the answer float64 [wordings], whether it is the greedy one bool [wordings]), in their order.

    A blank is put between prompt and answer where neither brings one.
    """
    wordings = [probe for fact in facts for probe in fact.probes]
    pairs = [(probe.prompt, _with_blank(probe)) for probe in wordings]
    values, greedy = model.log_likelihoods(pairs)
    num_bytes = np.array([len(probe.answer.strip().encode()) for probe in wordings])
    return -values / math.log(2) / num_bytes, greedy


def _with_blank(probe: Probe) -> str:
    joined = probe.prompt[-1].isspace() or probe.answer[0].isspace()
    return probe.answer if joined else f" {probe.answer}"


@dataclass(frozen=True)
class ProbeGroup:
    """Facts of a kind in one form and direction (or all of them): means over facts of means over wordings."""

    kind: str
    form: str
    direction: str
    facts: int
    base_bits: float
    adapted_bits: float
    base_greedy: float
    adapted_greedy: float


@dataclass(frozen=True)
class ProbeResult:
    """What became of the facts of a file."""

    file: str
    outcome: str
    """learned, forgot or undecided, by the interval of `learned`."""
    learned: Estimate | None
    """Bits per byte by which trained facts fell more than controls; None without controls."""
    trained: Estimate
    """Bits per byte by which trained facts fell; positive is learned."""
    control: Estimate | None
    groups: list[ProbeGroup]


def compare_facts(
    file: str,
    facts: Sequence[Fact],
    base: tuple[np.ndarray, np.ndarray],
    adapted: tuple[np.ndarray, np.ndarray],
    judge: Judge,
) -> ProbeResult:
    """The result of a probe file from both models' `score_facts`."""
    counts = np.array([len(fact.probes) for fact in facts])
    owner = np.repeat(np.arange(len(facts)), counts)
    falls = np.bincount(owner, base[0] - adapted[0]) / counts
    kinds = np.array([fact.kind for fact in facts])
    seed = statistics.source_seed(judge.seed, file)
    trained, trained_rows = _fall(falls[kinds == TRAINED], judge, [*seed, 0])
    control = learned = None
    decided = trained
    fewest = int((kinds == TRAINED).sum())
    if (kinds == CONTROL).any():
        control, control_rows = _fall(falls[kinds == CONTROL], judge, [*seed, 1])
        fewest = min(fewest, int((kinds == CONTROL).sum()))
        value = trained.value - control.value
        learned = Estimate(value, None, None)
        if trained_rows is not None and control_rows is not None:
            interval = statistics.percentile_interval(trained_rows - control_rows, judge.confidence, float(fewest))
            learned = Estimate(value, *interval)
        decided = learned
    outcome = UNDECIDED
    if decided.low is not None and decided.high is not None and fewest >= statistics.least_documents(judge.confidence):
        outcome = LEARNED if decided.low > 0 else FORGOT if decided.high < 0 else UNDECIDED
    return ProbeResult(file, outcome, learned, trained, control, _groups(facts, owner, base, adapted))


def means_by_kind(facts: Sequence[Fact], bits: np.ndarray) -> dict[str, float]:
    """trained and, where there are some, control -> mean over facts of their wordings' mean `bits` [wordings]."""
    counts = np.array([len(fact.probes) for fact in facts])
    means = np.bincount(np.repeat(np.arange(len(facts)), counts), bits) / counts
    kinds = np.array([fact.kind for fact in facts])
    return {kind: float(means[kinds == kind].mean()) for kind in (TRAINED, CONTROL) if (kinds == kind).any()}


def _fall(values: np.ndarray, judge: Judge, seed: list[int]) -> tuple[Estimate, np.ndarray | None]:
    if len(values) < 2:
        return Estimate(float(values.mean()), None, None), None
    rows = statistics.resampled_ratios(values[None], np.ones(len(values)), judge.num_resamples, seed)[0]
    interval = statistics.percentile_interval(rows, judge.confidence, float(len(values)))
    return Estimate(float(values.mean()), *interval), rows


def _groups(
    facts: Sequence[Fact],
    owner: np.ndarray,
    base: tuple[np.ndarray, np.ndarray],
    adapted: tuple[np.ndarray, np.ndarray],
) -> list[ProbeGroup]:
    wordings = [(fact.kind, probe.form, probe.direction) for fact in facts for probe in fact.probes]
    groups = []
    for kind in (TRAINED, CONTROL):
        for form in FORMS:
            for direction in DIRECTIONS:
                chosen = np.array([wording == (kind, form, direction) for wording in wordings])
                if not chosen.any():
                    continue
                members, place, counts = np.unique(owner[chosen], return_inverse=True, return_counts=True)
                means = [
                    float((np.bincount(place, row[chosen].astype(np.float64)) / counts).mean())
                    for row in (base[0], adapted[0], base[1], adapted[1])
                ]
                groups.append(ProbeGroup(kind, form, direction, len(members), *means))
    return groups
