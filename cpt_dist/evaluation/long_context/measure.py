"""The long-context evaluation of a base and an adapted model: loss by position, synthetic tasks, short context.

One model is in memory at a time, and both see the same documents and the same prompts. What can't be measured is
said with its reason and never counted as 0. `paired_values` gives the numbers behind every comparison, document by
document and item by item, to whoever wants to decide something by them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from cpt_dist.config import CptConfig
from cpt_dist.data.remote import shards_folder
from cpt_dist.errors import UserError
from cpt_dist.evaluation import evaluate as held_out_evaluation
from cpt_dist.evaluation.bits_per_byte import DocumentScores, Score, score_documents
from cpt_dist.evaluation.documents import DocumentEncoder, EvaluationText, choose_texts
from cpt_dist.evaluation.evaluate import HeldOutSet, Settings, SourceResult, check_finite, read_held_out_sets
from cpt_dist.evaluation.long_context import positions, suite
from cpt_dist.evaluation.long_context.answering import Answerer, CachedAnswerer
from cpt_dist.evaluation.long_context.inputs import Lengths, check_long_context
from cpt_dist.evaluation.long_context.items import Item
from cpt_dist.evaluation.long_context.positions import Change, Curve, PositionScores
from cpt_dist.evaluation.long_context.suite import ItemScores, SuiteSettings, TaskResult
from cpt_dist.evaluation.long_context.texts import choose_long, encode_beginnings, make_haystack, read_texts
from cpt_dist.evaluation.scorers import packed_scorer

Report = Callable[[str], None]
MODELS = ("base", "adapted")


@dataclass(frozen=True)
class PairedValues:
    """What both models got on the same documents or items, for a test of one's choice; arrays [documents or items]."""

    name: str
    """short/SOURCE, position/START-STOP or TASK/LENGTH/WAY."""
    unit: str
    """bits per byte, nats per token, or score between 0 and 1."""
    higher_is_better: bool
    ids: tuple[str, ...]
    base: np.ndarray
    """Numerators: bits, nats, scores."""
    adapted: np.ndarray
    weights: np.ndarray
    """Denominators: bytes, tokens, ones. A model's value is the sum of its numerators over their sum."""


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory, as the measurements see it."""

    score: Score
    answer: Callable[[], Answerer]
    """Makes it ready to answer; it scores no more after that."""


@dataclass(frozen=True)
class ModelScores:
    """All that was measured of one model."""

    short: dict[str, DocumentScores]
    positions: PositionScores | None
    items: list[ItemScores]


@dataclass(frozen=True)
class Material:
    """What both models are measured on."""

    short: list[HeldOutSet]
    long_texts: list[EvaluationText]
    positions_not_run: str | None
    borders: tuple[int, ...]
    items: list[list[list[Item]]]
    """Groups of items of each model; one list twice where the tokenizers are the same."""
    reasons: dict[tuple[str, int], str]
    haystack: str


@dataclass(frozen=True)
class LongContextEvaluation:
    """The comparison, as the report shows it."""

    base_model: str
    adapted_model: str
    same_tokenizer: bool
    settings: Settings
    lengths: Lengths
    num_items: int
    haystack: str
    short: list[SourceResult]
    documents: tuple[str, ...]
    """Ids of those scored by position."""
    positions_not_run: str | None
    base_curve: Curve | None
    adapted_curve: Curve | None
    changes: tuple[Change, ...]
    """Empty with two tokenizers, whose positions don't correspond."""
    tasks: list[TaskResult]
    effective_lengths: dict[str, dict[str, dict[str, int | None]]]
    """Task -> way of scoring -> base and adapted."""
    pairs: list[PairedValues] = field(default_factory=list)


def paired_values(evaluation: LongContextEvaluation) -> list[PairedValues]:
    """The values behind every comparison of the evaluation: short context, positions, tasks."""
    return evaluation.pairs


def evaluate_long_context(config: CptConfig, report: Report = lambda line: None) -> LongContextEvaluation:
    """Measure `config.evaluate.base` and `.adapted`; the same folder twice measures one model, once.

    Raises UserError where a model or all documents are missing, or a file is damaged.
    """
    lengths = check_long_context(config)
    folders = (config.evaluate.base, config.evaluate.adapted)
    encoders = [DocumentEncoder(folder, config.data.separator) for folder in folders]
    material = gather(config, lengths, encoders, report)
    scores: list[ModelScores] = []
    for number, folder in enumerate(folders):
        if number and folder == folders[0]:
            scores.append(scores[0])
            continue
        report(f"loading the {MODELS[number]} model")
        loaded = load(config, folder, encoders[number])
        scores.append(measure(loaded, number, material, encoders[number], config, lengths, report))
        del loaded
    return compare_models(config, lengths, encoders, material, scores)


def load(config: CptConfig, folder: str, encoder: DocumentEncoder) -> LoadedModel:
    """A model that scores packed documents first, and then answers with a cache of keys and values."""
    from cpt_dist.model.load import load_model

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_model(replace(config.model, path=folder)).to(device).eval()

    def answer() -> Answerer:
        plain: Any = model.hf
        plain.set_attn_implementation("sdpa")
        return CachedAnswerer(plain, encoder, device, config.evaluation.long_context.generate)

    return LoadedModel(packed_scorer(model, device), answer)


def suite_settings(config: CptConfig, lengths: Lengths) -> SuiteSettings:
    """The synthetic suite that the configuration asks for."""
    wanted = config.evaluation.long_context
    return SuiteSettings(
        tuple(wanted.tasks), lengths.of_tasks, lengths.native, wanted.items, tuple(wanted.depths), config.seed
    )


def gather(
    config: CptConfig, lengths: Lengths, encoders: Sequence[DocumentEncoder], report: Report = lambda line: None
) -> Material:
    """Read the documents and make the prompts."""
    wanted = config.evaluation.long_context
    report("reading documents")
    texts = read_texts(config)
    max_tokens = Settings.of(config).max_tokens
    if config.data.sources and not wanted.documents:
        roles = {name: source.role for name, source in config.data.sources.items()}
        short = read_held_out_sets(shards_folder(config.data), roles, encoders[0], max_tokens)
    else:
        chosen = choose_texts(texts, encoders[0], max_tokens)
        reason = None if chosen else "its first document doesn't begin within evaluation.max_tokens; raise that"
        short = [HeldOutSet("documents", "replay", chosen, len(texts), reason)]
    places, longest = choose_long(texts, encoders[0], lengths.min_document, wanted.max_documents)
    not_run = None
    if not places:
        not_run = (
            f"no document has {lengths.min_document:,} tokens (the longest that could, has {longest:,}); give longer "
            "ones or lower evaluation.long_context.min_document_tokens"
        )
    settings = suite_settings(config, lengths)
    items: list[list[list[Item]]] = []
    reasons: dict[tuple[str, int], str] = {}
    if wanted.tasks:
        report("making prompts")
        haystack = make_haystack(texts, wanted.haystack, max(lengths.of_tasks))
        same = encoders[0].fingerprint == encoders[1].fingerprint
        for encoder in encoders[:1] if same else encoders:
            groups, missing = suite.make_items(settings, encoder, haystack)
            items.append(groups)
            reasons |= missing
    items = [items[0], items[-1]] if items else [[], []]
    borders = positions.bucket_borders(lengths.of_positions, wanted.position_buckets)
    return Material(short, [texts[place] for place in places], not_run, borders, items, reasons, wanted.haystack)


def measure(
    model: LoadedModel,
    number: int,
    material: Material,
    encoder: DocumentEncoder,
    config: CptConfig,
    lengths: Lengths,
    report: Report = lambda line: None,
) -> ModelScores:
    """Measure model `number` (0 base, 1 adapted). Raises UserError where a loss is no number."""
    name = MODELS[number]
    settings = Settings.of(config)
    short = {}
    for held_out in material.short:
        if held_out.texts:
            report(f"{name} model on {held_out.source} in windows of {lengths.short:,} tokens")
            found = score_documents(
                held_out.texts, encoder, model.score, window=lengths.short, batch_tokens=settings.batch_tokens
            )
            check_finite(name, held_out, found)
            short[held_out.source] = found
    by_position = None
    if material.long_texts:
        report(f"{name} model on {len(material.long_texts)} long documents")
        encoded = encode_beginnings(material.long_texts, encoder, lengths.of_positions)
        by_position = positions.score_positions(encoded, model.score, material.borders)
        if not np.isfinite(by_position.nll).all():
            raise UserError(
                f"evaluate.{name}: its loss on a long document is no number; the weights are damaged or overflow"
            )
    items: list[ItemScores] = []
    if material.items[number]:
        depths = config.evaluation.long_context.depths
        items = suite.score_items(
            material.items[number], model.answer(), depths, lambda line: report(f"{name} model on {line}")
        )
    return ModelScores(short, by_position, items)


def compare_models(
    config: CptConfig,
    lengths: Lengths,
    encoders: Sequence[DocumentEncoder],
    material: Material,
    scores: Sequence[ModelScores],
) -> LongContextEvaluation:
    """The comparison of what `measure` gave for base and adapted."""
    settings = replace(Settings.of(config), window_tokens=lengths.short)
    base, adapted = scores
    same = encoders[0].fingerprint == encoders[1].fingerprint
    short: list[SourceResult] = []
    for held_out in material.short:
        if not held_out.texts:
            short.append(SourceResult(held_out.source, held_out.role, held_out_evaluation.NOT_RUN, held_out.not_run))
            continue
        kept = [all(encoder.keeps(text.text) for encoder in encoders) for text in held_out.texts]
        pair = base.short[held_out.source], adapted.short[held_out.source]
        short.append(held_out_evaluation.compare(held_out, *pair, settings, kept.count(False))[0])
    resampling = settings.num_resamples, settings.confidence, settings.seed
    curves: list[Curve | None] = [
        positions.curve(one.positions, *resampling) if one.positions else None for one in scores
    ]
    changes: tuple[Change, ...] = ()
    if base.positions and adapted.positions and same:
        changes = positions.changes(base.positions, adapted.positions, *resampling)
    of_suite = suite_settings(config, lengths)
    tasks = suite.compare_suites(
        base.items, adapted.items, material.reasons, of_suite, settings.num_resamples, settings.confidence
    )
    ways = list(dict.fromkeys(result.way for result in tasks))
    effective = {
        task: {
            way: {name: suite.effective_length(tasks, task, way, name, lengths.native) for name in MODELS}
            for way in ways
        }
        for task in of_suite.tasks
    }
    return LongContextEvaluation(
        config.evaluate.base,
        config.evaluate.adapted,
        same,
        settings,
        lengths,
        of_suite.num_items,
        material.haystack,
        short,
        tuple(text.id for text in material.long_texts),
        material.positions_not_run,
        curves[0],
        curves[1],
        changes,
        tasks,
        effective,
        _pairs(material, base, adapted, same),
    )


def _pairs(material: Material, base: ModelScores, adapted: ModelScores, same: bool) -> list[PairedValues]:
    found = []
    for held_out in material.short:
        if held_out.source in base.short:
            before, after = base.short[held_out.source], adapted.short[held_out.source]
            found.append(
                PairedValues(
                    f"short/{held_out.source}",
                    "bits per byte",
                    False,
                    tuple(text.id for text in held_out.texts),
                    before.nll / np.log(2),
                    after.nll / np.log(2),
                    before.num_bytes.astype(np.float64),
                )
            )
    if base.positions and adapted.positions and same:
        borders = base.positions.borders
        for bucket, (start, stop) in enumerate(itertools.pairwise(borders)):
            there = np.flatnonzero(base.positions.tokens[:, bucket])
            if len(there):
                found.append(
                    PairedValues(
                        f"position/{start}-{stop}",
                        "nats per token",
                        False,
                        tuple(material.long_texts[place].id for place in there),
                        base.positions.nll[there, bucket],
                        adapted.positions.nll[there, bucket],
                        base.positions.tokens[there, bucket].astype(np.float64),
                    )
                )
    after_items = {(one.task, one.length): one for one in adapted.items}
    for before_item in base.items:
        after_item = after_items.get((before_item.task, before_item.length))
        if after_item is None:
            continue
        for way, values in before_item.scores.items():
            found.append(
                PairedValues(
                    f"{before_item.task}/{before_item.length}/{way}",
                    "score between 0 and 1",
                    True,
                    before_item.ids,
                    values,
                    after_item.scores[way],
                    np.ones(len(values)),
                )
            )
    return found
