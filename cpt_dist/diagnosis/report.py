"""diagnosis.json, diagnosis.md and diagnosis.html of a diagnosis.

One record holds every number (docs/diagnosis.md lists its fields); the Markdown and the page are templates over that
record, so the three files can't disagree. The page is one file without scripts or anything fetched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cpt_dist.config import CptConfig
from cpt_dist.diagnosis.diagnose import Diagnosis
from cpt_dist.evaluation.statistics import Estimate
from cpt_dist.planning.adaptation import DISPUTES, THRESHOLDS, replay_share
from cpt_dist.planning.adaptation_rules import effective_thresholds
from cpt_dist.report_files import template_environment, write_report_files

FORMAT = "cpt_dist.diagnosis/1"
NEEDED = {
    "gap": "general text with enough documents: general=FILES",
    "fertility_ratio": "general text: general=FILES",
    "relative_overlap": "general text of enough words: general=FILES",
    "learnability": "a pilot: more domain text, or diagnose.pilot_share",
    "context_tokens": "nothing: the model declares no limit of positions",
    "num_parameters": "the model's weights",
    "memory_bytes": "gpus=… and gpu_memory=…",
    "budget_tokens": "budget_tokens=…, or gpu_hours=… and tflops_per_gpu=…",
    "need": "need=knowledge, behaviour or language",
    "instructions": "instructions=… (examples that are there)",
    "accuracy": "accuracy=… of the base model on your own task, with its best prompt",
    "target": "target=… (the accuracy that would do)",
    "fresh_days": "fresh_days=…",
    "privacy": "privacy=none, removable or per_reader",
    "max_prompt_tokens": "max_prompt_tokens=…",
}
"""Fact -> what makes it known."""


def _estimate(estimate: Estimate | None) -> dict[str, float | None] | None:
    return asdict(estimate) if estimate is not None else None


def _side(found: Diagnosis, name: str) -> dict[str, Any]:
    side, counts, scored = found.sides[name], found.tokens[name], found.measures.scored[name]
    sample = side.sample
    return {
        "files": sample.num_files,
        "documents": sample.num_documents,
        "bytes": sample.num_bytes,
        "duplicate_share": sample.duplicate_share,
        "records_without_text": sample.num_without_text,
        "sampled_documents": len(sample.documents),
        "sampled_bytes": sum(one.num_bytes for one in sample.documents),
        "tokens": _estimate(counts.volume),
        "tokens_counted": sample.is_whole,
        "tokens_per_byte": _estimate(counts.per_byte),
        "tokens_per_word": counts.per_word,
        "bits_per_byte": _estimate(scored.bits_per_byte),
        "scored_documents": scored.documents,
        "scored_bytes": scored.bytes,
        "scored_tokens": scored.tokens,
    }


def _pilot(found: Diagnosis) -> dict[str, Any]:
    pilot = found.measures.pilot
    if pilot is None:
        return {"status": "not run", "reason": found.measures.pilot_reason}
    return {
        "status": "measured",
        "learnability": _estimate(pilot.learnability),
        "domain_bits_per_byte_after": pilot.domain_after,
        "general_change": _estimate(pilot.forgetting),
        **asdict(pilot.run),
    }


def _cost(found: Diagnosis, config: CptConfig) -> dict[str, Any]:
    """What full CPT would take: one reading and four, with replay."""
    facts = found.facts
    share = replay_share(facts, effective_thresholds(config.diagnose.thresholds))
    reading = facts.domain_tokens / (1 - share)
    flops = reading * found.measures.flops_per_token
    speed = config.diagnose.tflops_per_gpu
    pilot = found.measures.pilot
    return {
        "replay_share": share,
        "tokens_of_one_reading": reading,
        "tokens_of_four_readings": 4 * reading,
        "flops_of_one_reading": flops,
        "gpu_hours_of_one_reading": flops / (speed * 1e12) / 3600 if speed else None,
        "hours_here_of_one_reading": reading / (pilot.run.tokens / pilot.run.seconds) / 3600 if pilot else None,
        "budget_tokens": facts.budget_tokens,
    }


def sentence(found: Diagnosis) -> str:
    """One sentence: what to try first, and where continued pretraining stands."""
    options = found.ranking.options
    best = options[0]
    behind = [one.option for one in options[1:] if one.points == best.points and not one.ruled_out]
    tied = f" (level with {', '.join(behind)}; the cheapest comes first)" if behind else ""
    text = f"Try {best.option} first{tied}."
    full = next(one for one in options if one.option == "CPT")
    if full is not best:
        against = [one for one in full.reasons if isinstance(one.effect, str) or one.effect < 0]
        why = (
            f": {'; '.join(one.text for one in against)}"
            if against
            else ": nothing known speaks for it strongly enough"
        )
        text += f" Full CPT is {'ruled out' if full.ruled_out else f'number {options.index(full) + 1} of 5'}{why}."
    return text


def build_record(found: Diagnosis, config: CptConfig) -> dict[str, Any]:
    """The content of diagnosis.json."""
    thresholds = effective_thresholds(config.diagnose.thresholds)
    return {
        "format": FORMAT,
        "sentence": sentence(found),
        "model": found.model,
        "num_parameters": found.measures.num_parameters,
        "options": [asdict(one) for one in found.ranking.options],
        "warnings": found.warnings,
        "unknown": [{"fact": name, "known_by": NEEDED[name]} for name in found.ranking.unknown],
        "silent_rules": list(found.ranking.silent),
        "sides": {name: _side(found, name) for name in found.sides},
        "gap": {"status": "measured", **(_estimate(found.measures.gap) or {})}
        if found.measures.gap
        else {"status": "not run", "reason": found.measures.gap_reason},
        "fertility_ratio": found.facts.fertility_ratio,
        "overlap": {"status": "not run", "reason": found.overlap}
        if isinstance(found.overlap, str)
        else {"status": "measured", **asdict(found.overlap), "relative": found.overlap.relative},
        "pilot": _pilot(found),
        "cost": _cost(found, config),
        "facts": asdict(found.facts),
        "thresholds": [
            {
                "name": name,
                "value": thresholds[name],
                "meaning": one.meaning,
                "source": "set by the user" if name in config.diagnose.thresholds else one.source,
            }
            for name, one in THRESHOLDS.items()
        ],
        "disputes": [asdict(one) for one in DISPUTES],
        "settings": {
            "confidence": config.evaluation.confidence,
            "resamples": config.evaluation.bootstrap,
            "seed": config.seed,
        },
    }


def _count(value: float | None) -> str:
    return "unknown" if value is None else f"{round(value):,}"


def _decimal(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4g}"


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1%}"


def interval(estimate: dict[str, float | None], form: str = "decimal") -> str:
    """The interval of an estimate of the record, in words."""
    if estimate.get("low") is None:
        return "no interval"
    write = {"decimal": _decimal, "percent": _percent, "count": _count}[form]
    return f"{write(estimate['low'])} to {write(estimate['high'])}"


def effect(value: int | str) -> str:
    """Points with their sign, or that the option is ruled out."""
    return value if isinstance(value, str) else f"{value:+d}"


_FILTERS: dict[str, Callable[..., str]] = {
    "count": _count,
    "decimal": _decimal,
    "percent": _percent,
    "interval": interval,
    "effect": effect,
}


def render(record: dict[str, Any], name: str) -> str:
    """diagnosis.md or diagnosis.html of a record of `build_record`."""
    environment = template_environment("cpt_dist.diagnosis", name.endswith(".html"), _FILTERS)
    return environment.get_template(f"{name}.j2").render(record)


def write_report(found: Diagnosis, config: CptConfig) -> tuple[dict[str, Any], list[Path]]:
    """Write the three files into `diagnose.out` (made if needed), each whole; the record and their paths."""
    record = build_record(found, config)
    folder = Path(config.diagnose.out)
    write_report_files(folder, "diagnosis", record, *(render(record, f"diagnosis.{kind}") for kind in ("md", "html")))
    return record, [folder / f"diagnosis.{kind}" for kind in ("html", "md", "json")]
