"""Compare a base and an adapted model on the held-out text of every source.

Both models score the same texts; every interval comes from resampling those texts. What could not be measured is
"not run" with its reason, never a number, and averages stay within a role, because a mean over domain and replay
would let a gain pay for what was forgotten. Whether the whole was worth it is not decided here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from cpt_dist.config import CptConfig, parse_quantity
from cpt_dist.data.remote import RemoteFolder, as_folder, shards_folder
from cpt_dist.data.shards import is_complete, read_held_out, read_manifest
from cpt_dist.errors import UserError
from cpt_dist.evaluation import statistics
from cpt_dist.evaluation.bits_per_byte import DocumentScores, Score, nll_change, score_documents
from cpt_dist.evaluation.documents import DocumentEncoder, EvaluationText, choose_texts
from cpt_dist.evaluation.inputs import check_inputs
from cpt_dist.evaluation.scorers import packed_scorer
from cpt_dist.evaluation.sign_flip import p_different
from cpt_dist.evaluation.statistics import Estimate

MEASURED, NOT_RUN = "measured", "not run"


@dataclass(frozen=True)
class Settings:
    """What an evaluation depends on besides the models and the texts."""

    window_tokens: int
    max_tokens: int
    batch_tokens: int
    num_resamples: int
    confidence: float
    seed: int

    @classmethod
    def of(cls, config: CptConfig) -> Settings:
        """From the `evaluation` and `evaluate` groups and the run's seed."""
        return cls(
            window_tokens=config.evaluation.seq_len,
            max_tokens=parse_quantity(config.evaluation.max_tokens, "evaluation.max_tokens"),
            batch_tokens=parse_quantity(config.evaluate.batch_tokens, "evaluate.batch_tokens"),
            num_resamples=config.evaluation.bootstrap,
            confidence=config.evaluation.confidence,
            seed=config.seed,
        )


@dataclass(frozen=True)
class HeldOutSet:
    """The texts of a source that an evaluation scores; without texts, `not_run` says why."""

    source: str
    role: str
    texts: list[EvaluationText]
    num_held_out: int
    """Documents that the source holds out, scored or not."""
    not_run: str | None = None


def read_held_out_sets(
    shards: str | Path | RemoteFolder, roles: Mapping[str, str], encoder: DocumentEncoder, max_tokens: int
) -> list[HeldOutSet]:
    """The texts of each source of `roles` (name -> domain or replay) in its order, at most `max_tokens` of each.

    A source that is not prepared or holds out nothing is not run. Raises UserError for a damaged one.
    """
    sets = []
    for source, role in roles.items():
        folder = as_folder(shards) / source
        if not is_complete(folder):
            sets.append(HeldOutSet(source, role, [], 0, f"'{folder}' has no complete shards; run launch/prepare.py"))
            continue
        num_held_out = read_manifest(folder)["counts"]["held_out"]
        texts = choose_texts(read_held_out(folder), encoder, max_tokens)
        reason = None
        if not num_held_out:
            reason = "it holds out no document; raise data.held_out_fraction and prepare it again"
        elif not texts:
            reason = "its first held-out document doesn't begin within the budget; raise evaluation.max_tokens"
        sets.append(HeldOutSet(source, role, texts, num_held_out, reason))
    return sets


def check_any_text(sets: Sequence[HeldOutSet]) -> None:
    """Raise UserError, with the reason of each source, where there is no text at all."""
    if not any(held_out.texts for held_out in sets):
        raise UserError([f"source '{held_out.source}': not run, since {held_out.not_run}" for held_out in sets])


@dataclass(frozen=True)
class SourceResult:
    """Bits per byte of one source before and after, or the reason why there is none."""

    source: str
    role: str
    status: str
    """measured, or not run; then every field but `reason` is empty."""
    reason: str | None = None
    documents: int = 0
    documents_held_out: int = 0
    effective_documents: float = 0.0
    """Documents of equal size that would weigh as much (Kish)."""
    bytes: int = 0
    base_tokens: int = 0
    adapted_tokens: int = 0
    only_beginning: bool = False
    """The single document is the beginning of one that exceeds evaluation.max_tokens."""
    changed_documents: int = 0
    """Documents that can't be read back exactly from the tokens of one of the tokenizers."""
    base: Estimate | None = None
    adapted: Estimate | None = None
    difference: Estimate | None = None
    """adapted - base: negative is better."""
    p_value: float | None = None
    """Of the sign-flip test: how often documents that didn't change would differ as much."""
    outcome: str | None = None
    """improved, worse or undecided, by the interval of the difference and the p-value."""
    documents_to_decide: int | None = None
    """If undecided: documents like these that would show a difference as large as the observed one."""

    @property
    def gain(self) -> Estimate | None:
        """base - adapted of a domain source: positive is gained."""
        return self.difference.negated() if self.difference and self.role == "domain" else None

    @property
    def forgetting(self) -> Estimate | None:
        """adapted - base of a replay source: positive is forgotten, negative is learned."""
        return self.difference if self.role == "replay" else None


@dataclass(frozen=True)
class MacroAverage:
    """Mean over the measured sources of a role, each with the same weight, and the sources that it leaves out."""

    role: str
    sources: list[str]
    not_run: list[str]
    base: Estimate
    adapted: Estimate
    difference: Estimate


@dataclass(frozen=True)
class Evaluation:
    """The comparison of two models over all sources."""

    base_model: str
    adapted_model: str
    same_tokenizer: bool
    settings: Settings
    sources: list[SourceResult]
    macro: list[MacroAverage]


def _estimates(
    values: np.ndarray, replicates: np.ndarray | None, confidence: float, effective: float
) -> list[Estimate]:
    if replicates is None:
        return [Estimate(float(value), None, None) for value in values]
    return [
        Estimate(float(value), *statistics.percentile_interval(row, confidence, effective))
        for value, row in zip(values, replicates, strict=True)
    ]


def compare(
    held_out: HeldOutSet, base: DocumentScores, adapted: DocumentScores, settings: Settings, changed_documents: int = 0
) -> tuple[SourceResult, np.ndarray | None]:
    """The result of a source with texts, and its resampled (base, adapted, difference), [3, num_resamples].

    Both scores are those of `held_out.texts`. With one document there are no resamples and no interval.
    """
    num_bytes = base.num_bytes.astype(np.float64)
    bits = np.stack([base.nll, adapted.nll, nll_change(base, adapted)]) / math.log(2)
    effective = statistics.effective_documents(num_bytes)
    replicates = None
    if len(num_bytes) >= 2:
        seed = statistics.source_seed(settings.seed, held_out.source)
        replicates = statistics.resampled_ratios(bits, num_bytes, settings.num_resamples, seed)
    estimates = _estimates(statistics.ratio(bits, num_bytes), replicates, settings.confidence, effective)
    p_value = p_different(bits[2], statistics.source_seed(settings.seed, held_out.source), settings.num_resamples)
    outcome = statistics.outcome(estimates[2], effective, settings.confidence, p_value)
    result = SourceResult(
        source=held_out.source,
        role=held_out.role,
        status=MEASURED,
        documents=len(num_bytes),
        documents_held_out=held_out.num_held_out,
        effective_documents=effective,
        bytes=int(base.num_bytes.sum()),
        base_tokens=int(base.num_tokens.sum()),
        adapted_tokens=int(adapted.num_tokens.sum()),
        only_beginning=any(text.is_prefix for text in held_out.texts),
        changed_documents=changed_documents,
        base=estimates[0],
        adapted=estimates[1],
        difference=estimates[2],
        p_value=p_value,
        outcome=outcome,
    )
    if outcome == statistics.UNDECIDED:
        needed = statistics.documents_to_decide(bits[2], num_bytes, settings.confidence)
        result = replace(result, documents_to_decide=needed)
    return result, replicates


def macro_averages(
    results: Sequence[SourceResult], replicates: Mapping[str, np.ndarray | None], confidence: float
) -> list[MacroAverage]:
    """One average for each role with a measured source; `replicates` are those of `compare`, by source.

    Sources are resampled independently of each other. The interval is as wide as the source with the fewest
    effective documents demands, and absent where one of the sources has none.
    """
    averages = []
    for role in ("domain", "replay"):
        of_role = [result for result in results if result.role == role]
        measured = [result for result in of_role if result.status == MEASURED]
        if not measured:
            continue
        rows = [replicates[result.source] for result in measured]
        values = np.mean([[e.value for e in (r.base, r.adapted, r.difference) if e] for r in measured], axis=0)
        known = [row for row in rows if row is not None]
        joint = np.mean(known, axis=0) if len(known) == len(rows) else None
        effective = min(result.effective_documents for result in measured)
        left_out = [result.source for result in of_role if result.status == NOT_RUN]
        estimates = _estimates(values, joint, confidence, effective)
        averages.append(MacroAverage(role, [result.source for result in measured], left_out, *estimates))
    return averages


def score_sets(
    name: str,
    encoder: DocumentEncoder,
    load: Callable[[], Score],
    sets: Sequence[HeldOutSet],
    settings: Settings,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, DocumentScores]:
    """Source -> the scores of its texts under the model that `load` brings into memory, for each set that has texts.

    Raises UserError, which calls the model `name`, where it gives a loss that is no number.
    """
    report(f"loading the {name} model")
    score = load()
    scores = {}
    for held_out in sets:
        if held_out.texts:
            report(f"{name} model on {held_out.source} ({len(held_out.texts)} documents)")
            found = score_documents(
                held_out.texts, encoder, score, window=settings.window_tokens, batch_tokens=settings.batch_tokens
            )
            check_finite(name, held_out, found)
            scores[held_out.source] = found
    return scores


def evaluate_sets(
    sets: Sequence[HeldOutSet],
    base: tuple[DocumentEncoder, Callable[[], Score]],
    adapted: tuple[DocumentEncoder, Callable[[], Score]],
    settings: Settings,
    report: Callable[[str], None] = lambda line: None,
) -> tuple[list[SourceResult], list[MacroAverage]]:
    """Score `sets` under both models and compare. A model is its encoder and a function that loads its scorer.

    One model is in memory at a time. `report` hears what is being done. Raises UserError where a model gives a loss
    that is no number.
    """
    models = {"base": base, "adapted": adapted}
    scores = {name: score_sets(name, *model, sets, settings, report) for name, model in models.items()}
    results: list[SourceResult] = []
    replicates: dict[str, np.ndarray | None] = {}
    for held_out in sets:
        if not held_out.texts:
            results.append(SourceResult(held_out.source, held_out.role, NOT_RUN, held_out.not_run))
            continue
        kept = [base[0].keeps(text.text) and adapted[0].keeps(text.text) for text in held_out.texts]
        pair = scores["base"][held_out.source], scores["adapted"][held_out.source]
        result, replicates[held_out.source] = compare(held_out, *pair, settings, kept.count(False))
        results.append(result)
    return results, macro_averages(results, replicates, settings.confidence)


def check_finite(model: str, held_out: HeldOutSet, scores: DocumentScores) -> None:
    """Raise UserError where `model` (base or adapted) gave a document a loss that is no number."""
    bad = np.flatnonzero(~np.isfinite(scores.nll))
    if len(bad):
        raise UserError(
            f"the {model} model: its loss on document {held_out.texts[bad[0]].id} of source '{held_out.source}' is no "
            "number; the weights are damaged or overflow, take another checkpoint"
        )


def folder_scorer(config: CptConfig, folder: str) -> Callable[[], Score]:
    """A function that loads the model in `folder`, onto a GPU where there is one, and gives its scorer."""

    def load() -> Score:
        from cpt_dist.model.load import load_model

        device = "cuda" if torch.cuda.is_available() else "cpu"
        return packed_scorer(load_model(replace(config.model, path=folder)).to(device).eval(), device)

    return load


def evaluate(config: CptConfig, report: Callable[[str], None] = lambda line: None) -> Evaluation:
    """Evaluate `config.evaluate.base` and `.adapted` on the held-out text of all of `config.data.sources`.

    Raises UserError where a model folder or all held-out text is missing, or a file is damaged.
    """
    check_inputs(config)
    settings = Settings.of(config)
    encoders = [
        DocumentEncoder(folder, config.data.separator) for folder in (config.evaluate.base, config.evaluate.adapted)
    ]
    roles = {name: source.role for name, source in config.data.sources.items()}
    sets = read_held_out_sets(shards_folder(config.data), roles, encoders[0], settings.max_tokens)
    check_any_text(sets)
    results, macro = evaluate_sets(
        sets,
        (encoders[0], folder_scorer(config, config.evaluate.base)),
        (encoders[1], folder_scorer(config, config.evaluate.adapted)),
        settings,
        report,
    )
    same = encoders[0].fingerprint == encoders[1].fingerprint
    return Evaluation(config.evaluate.base, config.evaluate.adapted, same, settings, results, macro)
