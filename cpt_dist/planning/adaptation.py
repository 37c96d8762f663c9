"""What is known before an adaptation is chosen, the ways to adapt, and the thresholds that rules compare with.

A fact that nobody measured or gave is None or "unknown", and then no rule speaks about it: nothing missing counts for
or against anything. Each threshold says where it is from; "heuristic" means that no measurement behind it is known
to us. The rules themselves are in `adaptation_rules.py`, and who measures is in `cpt_dist/diagnosis/`.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

CPT, LORA_CPT, SFT, RAG, PROMPT = "CPT", "LoRA-CPT", "SFT", "RAG", "prompt"
OPTIONS = (PROMPT, RAG, SFT, LORA_CPT, CPT)
"""From the cheapest to the dearest, which is also how equal scores are ranked: the dearer way has to show its case."""
UNKNOWN = "unknown"
NEEDS = (UNKNOWN, "knowledge", "behaviour", "language")
PRIVACIES = (UNKNOWN, "none", "removable", "per_reader")
HEURISTIC = "heuristic"
BYTES_OF_TRAINING = 16
"""Bytes a parameter for fp32 weights, gradients and two Adam moments (ZeRO, arXiv 1910.02054, section 3.1, counts the
same for mixed precision)."""
BYTES_OF_FROZEN_WEIGHTS = 2
"""Bytes a parameter of a frozen model in bf16."""


@dataclass(frozen=True)
class Measured:
    """A value with its interval; `low` and `high` are None where the data gave none."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Facts:
    """All that the rules look at."""

    domain_tokens: int
    """Different tokens of domain text that could be trained on: exact duplicates counted once."""
    general_tokens: int = 0
    """Tokens of general text that could be replayed; 0: none was given."""
    gap: Measured | None = None
    """Bits per byte of the base model on domain text minus on general text."""
    fertility_ratio: float | None = None
    """Tokens per byte of domain text over those of general text."""
    relative_overlap: float | None = None
    """Overlap of the most frequent words of domain and general text, over that of two halves of the general text."""
    learnability: Measured | None = None
    """Part of the bits per byte of held-out domain text that a pilot took off."""
    context_tokens: int | None = None
    """Positions of the model."""
    num_parameters: int | None = None
    memory_bytes: int | None = None
    """Memory of all devices together."""
    budget_tokens: int | None = None
    """Tokens that can be trained on."""
    instruct_signs: tuple[str, ...] = ()
    """What says that the model was instruction-tuned already."""
    need: str = UNKNOWN
    """knowledge, behaviour or language: what the model lacks."""
    instructions: int | None = None
    """Examples of prompts with good answers."""
    accuracy: float | None = None
    """Of the base model on the user's own task, with its best prompt."""
    target: float | None = None
    """Accuracy that would do."""
    fresh_days: float | None = None
    """Days after which a new fact must be in the answers."""
    privacy: str = UNKNOWN
    """none, removable (documents must be taken out on request) or per_reader (not every reader may see all)."""
    max_prompt_tokens: int | None = None
    """Most tokens that a request may carry, for its latency or price."""


@dataclass(frozen=True)
class Threshold:
    """A number that a rule compares with, and where it is from."""

    value: float
    meaning: str
    source: str


THRESHOLDS = MappingProxyType(
    {
        "floor_tokens": Threshold(
            10e6,
            "different domain tokens below which CPT on raw text is ruled out",
            f"{HEURISTIC}, above the 1.3M raw tokens that lowered question answering from 39.49 to 38.15 (EntiGraph, "
            "arXiv 2409.07431)",
        ),
        "ample_tokens": Threshold(
            100e6, "different domain tokens from which volume speaks for full CPT", f"{HEURISTIC} of several guides"
        ),
        "least_gain": Threshold(0.01, "part of the held-out bits per byte that a pilot has to take off", HEURISTIC),
        "far_overlap": Threshold(
            0.5, "relative word overlap up to which the domain is far from general text", HEURISTIC
        ),
        "near_overlap": Threshold(0.8, "relative word overlap from which the domain is near", HEURISTIC),
        "far_fertility": Threshold(
            1.5, "fertility ratio from which the domain is far (another language or notation)", HEURISTIC
        ),
        "near_fertility": Threshold(1.1, "fertility ratio up to which the domain is near", HEURISTIC),
        "few_instructions": Threshold(100, "examples below which SFT has little to learn from", HEURISTIC),
        "enough_instructions": Threshold(
            500,
            "examples from which SFT is promising",
            f"{HEURISTIC}; LIMA (arXiv 2305.11206) needed 1,000 curated ones",
        ),
        "live_days": Threshold(1, "days up to which facts are live: no training keeps up", HEURISTIC),
        "retrain_days": Threshold(30, "days up to which training would have to be repeated too often", HEURISTIC),
        "rag_prompt_tokens": Threshold(
            1000, "prompt tokens that retrieved passages need at least", f"{HEURISTIC}: five passages of 200 tokens"
        ),
        "prompt_share": Threshold(
            0.5, "part of the model's positions that the whole domain text may fill as a prompt", HEURISTIC
        ),
        "replay_weak": Threshold(
            0.05,
            "share of replay under a weak shift",
            "Ibrahim et al. 2024 (arXiv 2403.08763): 5% for English to English",
        ),
        "replay_strong": Threshold(
            0.25,
            "share of replay under a strong shift",
            "Ibrahim et al. 2024 (arXiv 2403.08763): 25% for a new language",
        ),
    }
)


def is_far(facts: Facts, thresholds: dict[str, float]) -> bool:
    """Whether words or fertility say that the domain lies far from general text."""
    overlap, fertility = facts.relative_overlap, facts.fertility_ratio
    return (overlap is not None and overlap <= thresholds["far_overlap"]) or (
        fertility is not None and fertility >= thresholds["far_fertility"]
    )


def is_near(facts: Facts, thresholds: dict[str, float]) -> bool:
    """Whether words and fertility both say that the domain lies near general text."""
    overlap, fertility = facts.relative_overlap, facts.fertility_ratio
    if overlap is None or fertility is None:
        return False
    return overlap >= thresholds["near_overlap"] and fertility <= thresholds["near_fertility"]


def replay_share(facts: Facts, thresholds: dict[str, float]) -> float:
    """Share of replay to begin with."""
    return thresholds["replay_strong"] if is_far(facts, thresholds) else thresholds["replay_weak"]


@dataclass(frozen=True)
class Dispute:
    """A threshold on which the literature doesn't agree."""

    about: str
    positions: tuple[str, ...]
    here: str
    """What is done here."""


DISPUTES = (
    Dispute(
        "How much domain text CPT needs",
        (
            "guides name 10 MB, 'millions to tens of millions' of tokens, or 'skip CPT below 100M tokens'",
            "1.3M raw tokens made question answering worse; 455M tokens rewritten from them raised it from 39.49 to "
            "56.22 (EntiGraph, arXiv 2409.07431)",
            "task-adaptive pretraining on corpora smaller than any of these floors helped classifiers (Gururangan et "
            "al. 2020, arXiv 2004.10964; masked language models)",
        ),
        "a floor of 10M different tokens, checked before anything else, and a pilot instead of further guesses",
    ),
    Dispute(
        "Whether a higher loss on the domain calls for CPT",
        (
            "a common rule: perplexity of domain over general text above 2",
            "code has fewer bits per byte than prose, and CPT on code helps even so (Code Llama, arXiv 2308.12950)",
        ),
        "the gap may speak for CPT and never against it; what a pilot learns weighs more",
    ),
    Dispute(
        "Share of replay",
        (
            "5% within a language, 25% for a new one (Ibrahim et al. 2024, arXiv 2403.08763)",
            "8% natural language for code (Code Llama, arXiv 2308.12950)",
            "the critical share of domain text grows with the model, 29.8% at 460M to 47.8% at 3.1B parameters, so 52% "
            "to 70% general text (arXiv 2407.17467)",
        ),
        "5% or 25% by the measured shift, to be swept; never 0 in silence",
    ),
    Dispute(
        "LoRA or full training",
        (
            "LoRA learns less and forgets less (Biderman et al. 2024, arXiv 2405.09673)",
            "LoRA equals full training while what is learned fits its capacity ('LoRA Without Regret', Thinking "
            "Machines 2025)",
        ),
        "full training for a far domain, LoRA for little text or a near domain",
    ),
    Dispute(
        "Readings of the same text",
        (
            "up to 4 are nearly as good as new text, little is left by 16 (Muennighoff et al. 2023, arXiv 2305.16264)",
            "guides name 3 to 10 epochs, some 50 to 100",
            "4 readings of the best tenth beat one reading of everything (Guo et al. 2024, arXiv 2406.14833)",
        ),
        "at most 4 readings in every estimate",
    ),
    Dispute(
        "New facts: training or retrieval",
        (
            "retrieval beat unsupervised fine-tuning for old and new facts (Ovadia et al. 2023, arXiv 2312.05934)",
            "with rewritten text CPT and retrieval add up (EntiGraph, arXiv 2409.07431)",
            "medical models tuned from a base rarely beat it with an equally tuned prompt: 12% wins, 38% losses (arXiv "
            "2411.04118)",
        ),
        "a need for facts speaks for RAG more than for CPT; volume and a pilot may outweigh it",
    ),
)
