"""Whether continued pretraining was worth it: claims about held-out text, suites and probes, declared beforehand.

Every domain source is a goal, every replay source has to be kept, and where there is a control arm the adapted model
has to beat that one on the domain, too; those about suites are in `verdict_suites.py`, about probes in
`probe_claims.py`. Averages of base and adapted model are scored beside them for the picture of gain against
forgetting; they decide nothing. How claims are tested is in `claims.py`.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from cpt_dist.config import CptConfig
from cpt_dist.data.remote import shards_folder
from cpt_dist.errors import UserError
from cpt_dist.evaluation.bits_per_byte import DocumentScores, Score, nll_change
from cpt_dist.evaluation.claims import CONTROL, GOAL, RETENTION, Answer, Claim, Verdict, answers, decide
from cpt_dist.evaluation.documents import DocumentEncoder
from cpt_dist.evaluation.evaluate import (
    HeldOutSet,
    Settings,
    check_any_text,
    compare,
    folder_scorer,
    macro_averages,
    read_held_out_sets,
    score_sets,
)
from cpt_dist.evaluation.inputs import check_verdict_inputs
from cpt_dist.evaluation.probe_claims import probe_claims
from cpt_dist.evaluation.scorers import packed_scorer
from cpt_dist.evaluation.statistics import Estimate
from cpt_dist.evaluation.suites.run import Searched
from cpt_dist.evaluation.verdict_suites import SuiteClaims, suite_claims
from cpt_dist.verdict_config import VerdictConfig

UNIT = "bits per byte"


@dataclass(frozen=True)
class Point:
    """A model in the picture of gain against forgetting, both against the base; None where nothing was measured."""

    name: str
    gain: Estimate | None
    forgetting: Estimate | None


@dataclass(frozen=True)
class WithLeaked:
    """What the verdict would rest on if items that occur in the training data counted."""

    answers: list[Answer]
    """To the claims of the verdict, in their order."""
    searched: Searched | None
    """What was searched for the items of suites; None where that is off, or no suite is claimed."""
    found: dict[str, int]
    """Name of a suite or probe in claims -> number of its items that occur in the training data; without those that
    were not searched for."""
    unchecked: dict[str, int]
    """Likewise its items that are too short to be searched for."""


@dataclass(frozen=True)
class Judgement:
    """The verdict on an adapted model and what it rests on."""

    models: dict[str, str]
    """base, adapted and perhaps control -> folder."""
    same_tokenizer: bool
    settings: Settings
    verdict: Verdict
    points: list[Point]
    with_leaked: WithLeaked | None = None
    """None where neither suites nor probes are claimed."""
    nothing_to_lose: Sequence[str] = ()
    """Suites to be kept on which the base isn't above chance for certain."""


def judge(config: CptConfig, report: Callable[[str], None] = lambda line: None) -> Judgement:
    """Score base, adapted and control model on all held-out text, and decide. `report` hears what is being done.

    Raises UserError for missing or damaged inputs, where there is nothing to compare, and where weights can't be
    averaged.
    """
    check_verdict_inputs(config)
    settings = Settings.of(config)
    folders = {"base": config.evaluate.base, "adapted": config.evaluate.adapted}
    if config.verdict.control is not None:
        folders["control"] = config.verdict.control
    encoders = {name: DocumentEncoder(folder, config.data.separator) for name, folder in folders.items()}
    same = len({encoder.fingerprint for encoder in encoders.values()}) == 1
    if config.verdict.averages and not same:
        raise UserError("verdict.averages: base and adapted model have different tokenizers; leave it empty")
    roles = {name: source.role for name, source in config.data.sources.items()}
    sets = read_held_out_sets(shards_folder(config.data), roles, encoders["base"], settings.max_tokens)
    if not config.suites.run and not config.verdict.probe:
        check_any_text(sets)
    scores = {
        name: score_sets(name, encoders[name], folder_scorer(config, folder), sets, settings, report)
        for name, folder in folders.items()
    }
    for share in config.verdict.averages:
        load = _averaged(config, share)
        scores[f"average {share:g}"] = score_sets(f"average {share:g}", encoders["base"], load, sets, settings, report)
    claims = claims_of(sets, scores, config.verdict)
    probes = probe_claims(config, folders)
    suites = suite_claims(config, folders, report) if config.suites.run else SuiteClaims([], [], None, [])

    def answered(more: list[Claim]) -> list[Answer]:
        return answers([*claims, *more], settings.confidence, settings.num_resamples, settings.seed)

    verdict = decide(answered([*suites.claims, *probes.claims]))
    with_leaked = None
    if suites.claims or probes.claims:
        found, unchecked = dict(probes.leaked), dict(probes.unchecked)
        if suites.searched is not None:
            found |= {name: len(places) for name, places in suites.searched.leaked.items()}
            unchecked |= suites.searched.unchecked
        all_answers = answered([*suites.with_leaked, *probes.with_leaked])
        with_leaked = WithLeaked(all_answers, suites.searched, found, unchecked)
    points = [point(name, sets, scores["base"], one, settings) for name, one in scores.items()]
    return Judgement(folders, same, settings, verdict, points, with_leaked, suites.nothing_to_lose)


def claims_of(
    sets: Sequence[HeldOutSet], scores: Mapping[str, Mapping[str, DocumentScores]], declared: VerdictConfig
) -> list[Claim]:
    """The claims about `sets`, from `scores` (model -> source -> scores) of base, adapted and perhaps control."""
    found = []
    for held_out in sets:
        margin = declared.margins.get(held_out.source)
        if held_out.role == "domain":
            threshold = declared.least_gain if margin is None else margin
            found.append(_claim(held_out, GOAL, threshold, scores["base"], scores["adapted"]))
            if "control" in scores:
                found.append(_claim(held_out, CONTROL, 0.0, scores["control"], scores["adapted"]))
        else:
            threshold = -(declared.most_loss if margin is None else margin)
            found.append(_claim(held_out, RETENTION, threshold, scores["base"], scores["adapted"]))
    return found


def _claim(
    held_out: HeldOutSet,
    kind: str,
    threshold: float,
    other: Mapping[str, DocumentScores],
    adapted: Mapping[str, DocumentScores],
) -> Claim:
    if not held_out.texts:
        return Claim(held_out.source, kind, threshold, UNIT, not_run=held_out.not_run)
    before, after = other[held_out.source], adapted[held_out.source]
    return Claim(held_out.source, kind, threshold, UNIT, -nll_change(before, after) / math.log(2), before.num_bytes)


def point(
    name: str,
    sets: Sequence[HeldOutSet],
    base: Mapping[str, DocumentScores],
    scores: Mapping[str, DocumentScores],
    settings: Settings,
) -> Point:
    """Where the model with these `scores` lies: mean gain over domain sources, mean forgetting over replay sources."""
    pairs = {
        one.source: compare(one, base[one.source], scores[one.source], settings) for one in sets if one.source in scores
    }
    replicates = {source: found for source, (_, found) in pairs.items()}
    macro = {a.role: a for a in macro_averages([r for r, _ in pairs.values()], replicates, settings.confidence)}
    gain = macro["domain"].difference.negated() if "domain" in macro else None
    return Point(name, gain, macro["replay"].difference if "replay" in macro else None)


def _averaged(config: CptConfig, share: float) -> Callable[[], Score]:
    def load() -> Score:
        import torch

        from cpt_dist.model.load import load_model
        from cpt_dist.retention.weight_average import average_into

        model = load_model(replace(config.model, path=config.evaluate.base))
        adapted = load_model(replace(config.model, path=config.evaluate.adapted))
        average_into(model, adapted, share)
        del adapted
        gc.collect()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return packed_scorer(model.to(device).eval(), device)

    return load
