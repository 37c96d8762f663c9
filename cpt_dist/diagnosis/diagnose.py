"""Do I need continued pretraining at all? Reads the texts, measures, and asks the rules of `cpt_dist/planning`.

Each number says how it came about: counted or from a sample, with an interval or without. What is not known is listed,
and what would make it known. It recommends; whether training was worth it is measured afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cpt_dist.config import CptConfig, parse_quantity
from cpt_dist.diagnosis.corpus_sample import sample_corpus
from cpt_dist.diagnosis.inputs import check_inputs
from cpt_dist.diagnosis.measure import Measures, Side, measure, split
from cpt_dist.diagnosis.model_signs import instruct_signs
from cpt_dist.diagnosis.words_and_tokens import Overlap, TokenCounts, count_tokens, word_overlap
from cpt_dist.errors import UserError
from cpt_dist.evaluation import statistics
from cpt_dist.evaluation.documents import DocumentEncoder
from cpt_dist.evaluation.statistics import Estimate
from cpt_dist.model.folder import check_model_folder, max_positions
from cpt_dist.planning.adaptation import Facts, Measured
from cpt_dist.planning.adaptation_rules import Ranking, rank
from cpt_dist.planning.adaptation_warnings import warnings


@dataclass(frozen=True)
class Diagnosis:
    """Everything that was found."""

    model: str
    sides: dict[str, Side]
    tokens: dict[str, TokenCounts]
    overlap: Overlap | str
    """Or why it was not measured."""
    measures: Measures
    facts: Facts
    ranking: Ranking
    warnings: list[str]


def _measured(estimate: Estimate | None) -> Measured | None:
    return Measured(estimate.value, estimate.low, estimate.high) if estimate else None


def budget_tokens(config: CptConfig, flops_per_token: float) -> int | None:
    """The budget in tokens: as given, or what the hours of a device at its speed amount to."""
    settings = config.diagnose
    if settings.budget_tokens is not None:
        return parse_quantity(settings.budget_tokens, "diagnose.budget_tokens")
    if settings.gpu_hours is None or settings.tflops_per_gpu is None:
        return None
    return int(settings.gpu_hours * 3600 * settings.tflops_per_gpu * 1e12 / flops_per_token)


def diagnose(config: CptConfig, report: Callable[[str], None] = lambda line: None) -> Diagnosis:
    """The whole diagnosis of `config.diagnose`. Raises UserError for files that are missing or hold no text."""
    domain_files, general_files = check_inputs(config)
    settings = config.diagnose
    encoder = DocumentEncoder(config.model.path, config.data.separator)
    sides: dict[str, Side] = {}
    tokens: dict[str, TokenCounts] = {}
    for name, files in (("domain", domain_files), ("general", general_files)):
        if not files:
            continue
        report(f"reading {name} text")
        size = parse_quantity(settings.sample_bytes, "diagnose.sample_bytes")
        sample = sample_corpus(files, f"diagnose.{name}", settings.text_field, size)
        held_out = parse_quantity(settings.held_out_tokens, "diagnose.held_out_tokens")
        sides[name] = split(name, sample, encoder, held_out)
        if not sides[name].held_out:
            raise UserError(
                f"diagnose.{name}: its sample has no text that fits into {settings.held_out_tokens} tokens; raise "
                "diagnose.held_out_tokens"
            )
        report(f"counting tokens of {name} text")
        tokens[name] = count_tokens(
            sample,
            encoder,
            num_resamples=config.evaluation.bootstrap,
            confidence=config.evaluation.confidence,
            seed=statistics.source_seed(config.seed, f"tokens of {name}"),
        )
    overlap: Overlap | str = "there is no general text"
    if "general" in sides:
        overlap = word_overlap(sides["domain"].sample, sides["general"].sample, (tokens["domain"], tokens["general"]))
    positions = max_positions(check_model_folder(config.model.path))
    window = min(config.evaluation.seq_len, positions or config.evaluation.seq_len)
    volume = tokens["domain"].volume.value
    measures = measure(config, sides["domain"], sides.get("general"), volume, encoder, window, report)
    facts = _facts(config, tokens, overlap, measures, positions)
    return Diagnosis(
        model=config.model.path,
        sides=sides,
        tokens=tokens,
        overlap=overlap,
        measures=measures,
        facts=facts,
        ranking=rank(facts, settings.thresholds),
        warnings=[*warnings(facts, settings.thresholds), *_doubts(config, sides, measures)],
    )


def _facts(
    config: CptConfig,
    tokens: dict[str, TokenCounts],
    overlap: Overlap | str,
    measures: Measures,
    positions: int | None,
) -> Facts:
    settings = config.diagnose
    ratio = tokens["domain"].per_byte.value / tokens["general"].per_byte.value if "general" in tokens else None
    memory = None
    if settings.gpus is not None and settings.gpu_memory is not None:
        memory = settings.gpus * parse_quantity(settings.gpu_memory, "diagnose.gpu_memory")
    return Facts(
        domain_tokens=round(tokens["domain"].volume.value),
        general_tokens=round(tokens["general"].volume.value) if "general" in tokens else 0,
        gap=_measured(measures.gap),
        fertility_ratio=ratio,
        relative_overlap=None if isinstance(overlap, str) else overlap.relative,
        learnability=_measured(measures.pilot.learnability) if measures.pilot else None,
        context_tokens=positions,
        num_parameters=measures.num_parameters,
        memory_bytes=memory,
        budget_tokens=budget_tokens(config, measures.flops_per_token),
        instruct_signs=instruct_signs(Path(config.model.path)),
        need=settings.need,
        instructions=settings.instructions,
        accuracy=settings.accuracy,
        target=settings.target,
        fresh_days=settings.fresh_days,
        privacy=settings.privacy,
        max_prompt_tokens=settings.max_prompt_tokens,
    )


def _doubts(config: CptConfig, sides: dict[str, Side], measures: Measures) -> Sequence[str]:
    """What limits the numbers themselves."""
    found = []
    for name, side in sides.items():
        share = side.sample.duplicate_share
        if share > 0.05:
            found.append(f"{share:.0%} of the {name} text repeats other documents exactly and was not counted.")
        if side.sample.num_without_text:
            found.append(f"{side.sample.num_without_text:,} {name} records have no usable text and were not counted.")
        least = statistics.least_documents(config.evaluation.confidence)
        effective = measures.scored[name].effective_documents
        if effective < least:
            found.append(
                f"The {name} text that was scored weighs as much as {effective:.1f} equal documents; "
                f"fewer than {least} give no interval, so nothing was decided by it. Raise diagnose.held_out_tokens, "
                "or give more documents."
            )
    if measures.pilot and measures.pilot.run.out_of_time:
        found.append(
            f"The pilot stopped after {measures.pilot.run.seconds:.0f} s, before its learning rate came down; raise "
            "diagnose.pilot_seconds."
        )
    return found
