"""What is measured with the model: bits per byte of domain and general text, and what a pilot changes about them.

Scores are those of `cpt_dist/evaluation`, whole documents in overlapping windows; intervals resample documents. Held
out are the documents with the smallest ids, and the pilot reads those after them. What was not measured says why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cpt_dist.config import CptConfig, parse_quantity
from cpt_dist.diagnosis.corpus_sample import CorpusSample, SampledDocument
from cpt_dist.diagnosis.pilot import PilotRun, default_peak, pack_rows, step_size, train_pilot
from cpt_dist.errors import UserError
from cpt_dist.evaluation import statistics
from cpt_dist.evaluation.bits_per_byte import DocumentScores, score_documents
from cpt_dist.evaluation.documents import DocumentEncoder, EvaluationText, choose_texts
from cpt_dist.evaluation.scorers import packed_scorer
from cpt_dist.evaluation.statistics import Estimate
from cpt_dist.model.load import load_model
from cpt_dist.model.packed import PackedCausalLM

LOG_2 = math.log(2)


@dataclass(frozen=True)
class Side:
    """Domain or general text."""

    name: str
    sample: CorpusSample
    held_out: list[EvaluationText]
    training: list[SampledDocument]
    """What a pilot may read: no document of `held_out`."""


@dataclass(frozen=True)
class Scored:
    """Bits per byte of a side's held-out text."""

    bits_per_byte: Estimate
    documents: int
    effective_documents: float
    bytes: int
    tokens: int


@dataclass(frozen=True)
class Pilot:
    """A pilot and what it changed."""

    run: PilotRun
    learnability: Estimate
    """Part of the domain's held-out bits per byte that it took off."""
    domain_after: float
    forgetting: Estimate | None
    """Bits per byte of general text after - before; None without general text."""


@dataclass(frozen=True)
class Measures:
    """All of it; a reason in place of what was not measured."""

    scored: dict[str, Scored]
    gap: Estimate | None
    gap_reason: str | None
    pilot: Pilot | None
    pilot_reason: str | None
    num_parameters: int
    flops_per_token: float
    """Of training, forward and backward."""


def split(name: str, sample: CorpusSample, encoder: DocumentEncoder, held_out_tokens: int) -> Side:
    """The sample as held-out and training documents; at most half of its documents are held out."""
    documents = sample.documents
    held_out = choose_texts(documents[: max(1, len(documents) // 2)], encoder, held_out_tokens)
    taken = {text.id for text in held_out}
    return Side(name, sample, held_out, [one for one in documents if one.id not in taken])


class Scorer:
    """Scores sides with a model, and resamples their documents, with the settings of a configuration."""

    def __init__(self, config: CptConfig, encoder: DocumentEncoder, window: int) -> None:
        self._encoder, self._window = encoder, window
        self._batch_tokens = parse_quantity(config.evaluate.batch_tokens, "evaluate.batch_tokens")
        self._resamples, self._confidence = config.evaluation.bootstrap, config.evaluation.confidence
        self._seed = config.seed

    def score(self, model: PackedCausalLM, side: Side) -> DocumentScores:
        """The side's held-out documents under `model`. Raises UserError where the loss is no number."""
        score = packed_scorer(model.eval(), next(model.parameters()).device)
        found = score_documents(
            side.held_out, self._encoder, score, window=self._window, batch_tokens=self._batch_tokens
        )
        if not np.isfinite(found.nll).all():
            raise UserError(
                f"model.path: its loss on {side.name} text is no number; the weights are damaged or overflow, fetch "
                "the model again"
            )
        return found

    def replicates(self, numerator: np.ndarray, denominator: np.ndarray, name: str) -> np.ndarray | None:
        """Resampled ratios of sums over documents, [resamples]; None for a single document."""
        if len(denominator) < 2:
            return None
        seed = statistics.source_seed(self._seed, name)
        return statistics.resampled_ratios(numerator[None], denominator, self._resamples, seed)[0]

    def estimate(self, value: float, replicates: np.ndarray | None, effective: float) -> Estimate:
        """`value` with the interval of `replicates`; none where there are too few documents to decide anything."""
        if replicates is None or effective < statistics.least_documents(self._confidence):
            return Estimate(value, None, None)
        return Estimate(value, *statistics.percentile_interval(replicates, self._confidence, effective))

    def ratio(self, numerator: np.ndarray, denominator: np.ndarray, num_bytes: np.ndarray, name: str) -> Estimate:
        """Sum of `numerator` over sum of `denominator`, both [documents], with its interval."""
        value = float(numerator.sum() / denominator.sum())
        effective = statistics.effective_documents(num_bytes.astype(np.float64))
        return self.estimate(value, self.replicates(numerator, denominator, name), effective)


def _scored(scorer: Scorer, side: Side, scores: DocumentScores) -> Scored:
    sizes = scores.num_bytes.astype(np.float64)
    bits = scorer.ratio(scores.nll / LOG_2, sizes, scores.num_bytes, side.name)
    effective = statistics.effective_documents(sizes)
    return Scored(bits, len(sizes), effective, int(sizes.sum()), int(scores.num_tokens.sum()))


def gap_estimate(scorer: Scorer, domain: DocumentScores, general: DocumentScores) -> Estimate:
    """Bits per byte of domain minus general text; the sides are resampled independently of each other."""
    rows, effective = [], []
    for name, scores in (("domain", domain), ("general", general)):
        sizes = scores.num_bytes.astype(np.float64)
        rows.append(scorer.replicates(scores.nll / LOG_2, sizes, name))
        effective.append(statistics.effective_documents(sizes))
    value = domain.bits_per_byte - general.bits_per_byte
    together = rows[0] - rows[1] if rows[0] is not None and rows[1] is not None else None
    return scorer.estimate(value, together, min(effective))


def _pilot_steps(config: CptConfig, domain: Side, volume: float, encoder: DocumentEncoder) -> list | str:
    """The steps of the pilot, or why there is none."""
    settings = config.diagnose
    if not settings.pilot:
        return "diagnose.pilot is false"
    most = min(settings.pilot_share * volume, parse_quantity(settings.pilot_tokens, "diagnose.pilot_tokens"))
    size = step_size(int(most))
    if size is None:
        return (
            f"{settings.pilot_share:.2%} of the domain, at most {settings.pilot_tokens}, are {int(most):,} tokens, too "
            "few for ten steps"
        )
    encoded, left = [], int(most)
    for one in domain.training:
        if left <= 0:
            break
        tokens = encoder.encode(one.text)[: left + 1]
        encoded.append(tokens)
        left -= len(tokens)
    steps = pack_rows(encoded, encoder.separator_id, size)
    if step_size(len(steps) * size) is None:
        return f"the sample has text for {len(steps)} steps beside what is held out; raise diagnose.sample_bytes"
    return steps


def measure(
    config: CptConfig,
    domain: Side,
    general: Side | None,
    volume: float,
    encoder: DocumentEncoder,
    window: int,
    report: Callable[[str], None] = lambda line: None,
) -> Measures:
    """Load the model, score both sides, train the pilot and score again. `volume` is the domain's tokens."""
    report("loading the model")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(config.seed)
    model = load_model(config.model).to(device)
    scorer = Scorer(config, encoder, window)
    sides = [side for side in (domain, general) if side is not None and side.held_out]
    before = {}
    for side in sides:
        report(f"bits per byte of {side.name} text ({len(side.held_out)} documents)")
        before[side.name] = scorer.score(model, side)
    scored = {side.name: _scored(scorer, side, before[side.name]) for side in sides}
    compared = len(sides) == 2
    steps = _pilot_steps(config, domain, volume, encoder)
    pilot: Pilot | str = (
        steps if isinstance(steps, str) else _run_pilot(config, model, scorer, sides, before, steps, report)
    )
    return Measures(
        scored=scored,
        gap=gap_estimate(scorer, before["domain"], before["general"]) if compared else None,
        gap_reason=None if compared else "there is no general text",
        pilot=None if isinstance(pilot, str) else pilot,
        pilot_reason=pilot if isinstance(pilot, str) else None,
        num_parameters=model.num_parameters,
        flops_per_token=model.flops_per_token(window),
    )


def _run_pilot(
    config: CptConfig,
    model: PackedCausalLM,
    scorer: Scorer,
    sides: Sequence[Side],
    before: dict[str, DocumentScores],
    steps: Sequence[Sequence[np.ndarray]],
    report: Callable[[str], None],
) -> Pilot | str:
    peak = config.diagnose.pilot_learning_rate or default_peak(model.num_parameters)
    try:
        run = train_pilot(model, steps, peak_lr=peak, seconds=config.diagnose.pilot_seconds, report=report)
    except torch.OutOfMemoryError:
        return "the device has no memory for training; run it where there is more, or set diagnose.pilot=false"
    if not math.isfinite(run.last_loss):
        return f"its loss became {run.last_loss}; lower diagnose.pilot_learning_rate (it was {peak:g})"
    after = {}
    for side in sides:
        report(f"bits per byte of {side.name} text after the pilot")
        after[side.name] = scorer.score(model, side)
    start, end = before["domain"], after["domain"]
    learnability = scorer.ratio(start.nll - end.nll, start.nll, start.num_bytes, "domain")
    forgetting = None
    if "general" in before:
        sizes = before["general"].num_bytes
        difference = (after["general"].nll - before["general"].nll) / LOG_2
        forgetting = scorer.ratio(difference, sizes.astype(np.float64), sizes, "general")
    return Pilot(run, learnability, end.bits_per_byte, forgetting)
