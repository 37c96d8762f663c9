"""Which way to adapt a model, ranked by rules that each say why and where they are from.

A rule compares facts with thresholds and gives points to options or rules them out; points are added up, and what was
ruled out comes last. It is a way of laying arguments side by side, not a model of the outcome: points are heuristic
even where the argument has a source. Everything here is a pure function of `Facts`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cpt_dist.planning.adaptation import (
    BYTES_OF_FROZEN_WEIGHTS,
    BYTES_OF_TRAINING,
    CPT,
    HEURISTIC,
    LORA_CPT,
    OPTIONS,
    PROMPT,
    RAG,
    SFT,
    THRESHOLDS,
    UNKNOWN,
    Facts,
    is_far,
    is_near,
    replay_share,
)

RULED_OUT = "ruled out"
Effect = int | str
"""Points, or RULED_OUT."""
Thresholds = Mapping[str, float]


@dataclass(frozen=True)
class Rule:
    """An argument: when it holds, what it says of each option, why, and where it is from."""

    name: str
    needs: tuple[str, ...]
    """Facts without which it can't speak."""
    holds: Callable[[Facts, Thresholds], bool]
    effects: Mapping[str, Effect]
    reason: Callable[[Facts, Thresholds], str]
    source: str


@dataclass(frozen=True)
class Reason:
    """A rule that held, as it concerns one option."""

    rule: str
    effect: Effect
    text: str
    source: str


@dataclass(frozen=True)
class RankedOption:
    """An option with its place."""

    option: str
    points: int
    ruled_out: bool
    reasons: tuple[Reason, ...]


@dataclass(frozen=True)
class Ranking:
    """All options, the best first, and what could not be asked."""

    options: tuple[RankedOption, ...]
    held: tuple[str, ...]
    silent: tuple[str, ...]
    """Rules that could not speak, because a fact is unknown."""
    unknown: tuple[str, ...]
    """Those facts."""


def count(value: float | None) -> str:
    return f"{value or 0:,.0f}"


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _low(facts: Facts, name: str) -> float:
    measured = getattr(facts, name)
    return measured.low if measured is not None and measured.low is not None else float("-inf")


def _high(facts: Facts, name: str) -> float:
    measured = getattr(facts, name)
    return measured.high if measured is not None and measured.high is not None else float("inf")


def _reading_tokens(facts: Facts, thresholds: Thresholds) -> float:
    """Tokens of one reading of the domain with its replay."""
    return facts.domain_tokens / (1 - replay_share(facts, dict(thresholds)))


def _fits(facts: Facts, thresholds: Thresholds) -> bool:
    room = thresholds["prompt_share"] * (facts.context_tokens or 0)
    if facts.max_prompt_tokens is not None:
        room = min(room, facts.max_prompt_tokens)
    return facts.domain_tokens <= room


RULES: tuple[Rule, ...] = (
    Rule(
        "volume below the floor",
        ("domain_tokens",),
        lambda f, t: f.domain_tokens < t["floor_tokens"],
        {CPT: RULED_OUT, LORA_CPT: RULED_OUT},
        lambda f, t: (
            f"{count(f.domain_tokens)} different tokens are below the floor of {count(t['floor_tokens'])}; rewrite "
            "them into more text first, or use another way"
        ),
        THRESHOLDS["floor_tokens"].source,
    ),
    Rule(
        "modest volume",
        ("domain_tokens",),
        lambda f, t: t["floor_tokens"] <= f.domain_tokens < t["ample_tokens"],
        {LORA_CPT: 1},
        lambda f, t: f"{count(f.domain_tokens)} different tokens fit into an adapter",
        "'LoRA Without Regret' (Thinking Machines 2025): LoRA is no worse while it has the capacity; the border is "
        f"{HEURISTIC}",
    ),
    Rule(
        "ample volume",
        ("domain_tokens",),
        lambda f, t: f.domain_tokens >= max(t["ample_tokens"], t["floor_tokens"]),
        {CPT: 1},
        lambda f, t: f"{count(f.domain_tokens)} different tokens are enough for full training",
        THRESHOLDS["ample_tokens"].source,
    ),
    Rule(
        "the pilot learned",
        ("learnability",),
        lambda f, t: _low(f, "learnability") > t["least_gain"],
        {CPT: 2, LORA_CPT: 2},
        lambda f, t: (
            f"the pilot took {_percent(f.learnability.value)} off the held-out bits per byte, surely more than "  # type: ignore[union-attr]
            f"{_percent(t['least_gain'])}"
        ),
        f"measured here; the border is {HEURISTIC}, and a lower loss need not become a better answer (Guo et al. 2024, "
        "arXiv 2406.14833)",
    ),
    Rule(
        "the pilot learned nothing",
        ("learnability",),
        lambda f, t: _high(f, "learnability") <= t["least_gain"],
        {CPT: -3, LORA_CPT: -3},
        lambda f, t: (
            f"the pilot surely took off no more than {_percent(t['least_gain'])} of the held-out bits per byte "
            f"({_percent(f.learnability.value)})"  # type: ignore[union-attr]
        ),
        f"measured here; the border is {HEURISTIC}",
    ),
    Rule(
        "the domain is harder",
        ("gap",),
        lambda f, t: _low(f, "gap") > 0,
        {CPT: 1, LORA_CPT: 1},
        lambda f, t: f"domain text costs the model {f.gap.value:+.3f} bits per byte over general text",  # type: ignore[union-attr]
        f"{HEURISTIC}: texts differ in entropy, so a gap may speak for training and the lack of one never against it",
    ),
    Rule(
        "the domain is far",
        (),
        lambda f, t: is_far(f, dict(t)),
        {CPT: 1, LORA_CPT: -1, PROMPT: -1},
        lambda f, t: _distance(f),
        "LoRA under-learns under a strong shift (Biderman et al. 2024, arXiv 2405.09673); borders of distance are "
        f"{HEURISTIC}",
    ),
    Rule(
        "the domain is near",
        ("relative_overlap", "fertility_ratio"),
        lambda f, t: is_near(f, dict(t)),
        {PROMPT: 1, LORA_CPT: 1},
        lambda f, t: _distance(f),
        f"LoRA keeps up under a weak shift (Biderman et al., arXiv 2405.09673); borders of distance are {HEURISTIC}",
    ),
    Rule(
        "behaviour is needed",
        ("need",),
        lambda f, t: f.need == "behaviour",
        {SFT: 2, PROMPT: 1, CPT: -2, LORA_CPT: -2},
        lambda f, t: "format, style and tasks are learned from examples, not from raw text",
        "LIMA (arXiv 2305.11206): 1,000 examples taught the form, pretraining the knowledge",
    ),
    Rule(
        "knowledge is needed",
        ("need",),
        lambda f, t: f.need == "knowledge",
        {RAG: 2, CPT: 1, LORA_CPT: 1, SFT: -1},
        lambda f, t: "facts can be looked up, or learned from much text; taught by few examples they are made up",
        "Ovadia et al. 2023 (arXiv 2312.05934) for RAG; Gekhman et al. 2024 (arXiv 2405.05904) against SFT",
    ),
    Rule(
        "a language is needed",
        ("need",),
        lambda f, t: f.need == "language",
        {CPT: 3, LORA_CPT: 1, SFT: -1, RAG: -2, PROMPT: -2},
        lambda f, t: "a language or notation is in no prompt; it is learned from running text",
        "Ibrahim et al. 2024 (arXiv 2403.08763): English to German by continued pretraining",
    ),
    Rule(
        "no examples",
        ("instructions",),
        lambda f, t: f.instructions == 0,
        {SFT: RULED_OUT},
        lambda f, t: "there is no example to tune on",
        "by definition",
    ),
    Rule(
        "few examples",
        ("instructions",),
        lambda f, t: 0 < (f.instructions or 0) < t["few_instructions"],
        {SFT: -1, PROMPT: 1},
        lambda f, t: f"{count(f.instructions)} examples are few to tune on; some of them fit into a prompt",
        HEURISTIC,
    ),
    Rule(
        "enough examples",
        ("instructions",),
        lambda f, t: (f.instructions or 0) >= max(1, t["enough_instructions"]),
        {SFT: 2},
        lambda f, t: f"{count(f.instructions)} examples can be tuned on",
        THRESHOLDS["enough_instructions"].source,
    ),
    Rule(
        "good enough already",
        ("accuracy", "target"),
        lambda f, t: (f.accuracy or 0.0) >= (f.target or 0.0),
        {PROMPT: 3, SFT: -1, LORA_CPT: -2, CPT: -3},
        lambda f, t: f"with its best prompt the model reaches {f.accuracy} where {f.target} would do",
        "medical models tuned from a base beat its tuned prompt in 12% of cases and lost in 38% (arXiv 2411.04118)",
    ),
    Rule(
        "live facts",
        ("fresh_days",),
        lambda f, t: (f.fresh_days or 0.0) <= t["live_days"],
        {RAG: 4, SFT: -1, LORA_CPT: -3, CPT: -3},
        lambda f, t: f"new facts must be there after {f.fresh_days:g} days: no training keeps up",
        f"Ovadia et al. 2023 (arXiv 2312.05934) for retrieval of new facts; the border is {HEURISTIC}",
    ),
    Rule(
        "facts change often",
        ("fresh_days",),
        lambda f, t: t["live_days"] < (f.fresh_days or 0.0) <= t["retrain_days"],
        {RAG: 2, LORA_CPT: -1, CPT: -2},
        lambda f, t: f"new facts must be there after {f.fresh_days:g} days, and each time training would be repeated",
        HEURISTIC,
    ),
    Rule(
        "documents must be removable",
        ("privacy",),
        lambda f, t: f.privacy == "removable",
        {RAG: 2, SFT: -1, LORA_CPT: -1, CPT: -2},
        lambda f, t: "what weights have memorised can't be taken out; an index can forget, an adapter can be made anew",
        "Carlini et al. 2022 (arXiv 2202.07646): models memorise, larger ones more",
    ),
    Rule(
        "readers may see different documents",
        ("privacy",),
        lambda f, t: f.privacy == "per_reader",
        {CPT: RULED_OUT, LORA_CPT: RULED_OUT, RAG: 3, SFT: -1},
        lambda f, t: "weights answer every reader alike; only retrieval can ask for rights",
        "Carlini et al. 2022 (arXiv 2202.07646): models memorise, larger ones more",
    ),
    Rule(
        "no room in the prompt",
        ("max_prompt_tokens",),
        lambda f, t: (f.max_prompt_tokens or 0) < t["rag_prompt_tokens"],
        {RAG: -3, PROMPT: -2, SFT: 1, LORA_CPT: 1, CPT: 1},
        lambda f, t: f"{count(f.max_prompt_tokens)} tokens a request leave no room for passages",
        THRESHOLDS["rag_prompt_tokens"].source,
    ),
    Rule(
        "everything fits into a prompt",
        ("domain_tokens", "context_tokens"),
        _fits,
        {PROMPT: 3},
        lambda f, t: f"all {count(f.domain_tokens)} tokens fit into the model's {count(f.context_tokens)} positions",
        f"long contexts answer better than retrieval where they could (Li et al. 2024, arXiv 2407.16833); {HEURISTIC}",
    ),
    Rule(
        "budget below the floor",
        ("budget_tokens",),
        lambda f, t: (f.budget_tokens or 0) < t["floor_tokens"],
        {CPT: RULED_OUT, LORA_CPT: RULED_OUT},
        lambda f, t: f"the budget pays {count(f.budget_tokens)} tokens, below the floor of {count(t['floor_tokens'])}",
        THRESHOLDS["floor_tokens"].source,
    ),
    Rule(
        "budget below one reading",
        ("budget_tokens", "domain_tokens"),
        lambda f, t: t["floor_tokens"] <= (f.budget_tokens or 0) < _reading_tokens(f, t),
        {CPT: -1},
        lambda f, t: (
            f"one reading with replay is {count(_reading_tokens(f, t))} tokens and the budget pays "
            f"{count(f.budget_tokens)}; take the best part of the text"
        ),
        "Guo et al. 2024 (arXiv 2406.14833): 4 readings of the best 5B tokens beat one of 50B",
    ),
    Rule(
        "too little memory for full training",
        ("memory_bytes", "num_parameters"),
        lambda f, t: (f.memory_bytes or 0) < BYTES_OF_TRAINING * (f.num_parameters or 0),
        {CPT: RULED_OUT},
        lambda f, t: (
            f"weights, gradients and Adam moments are {BYTES_OF_TRAINING * (f.num_parameters or 0) / 1e9:,.3g} GB, "
            f"all devices have {(f.memory_bytes or 0) / 1e9:,.3g} GB"
        ),
        "16 bytes a parameter (ZeRO, arXiv 1910.02054, section 3.1); activations come on top",
    ),
    Rule(
        "too little memory for the frozen model",
        ("memory_bytes", "num_parameters"),
        lambda f, t: (f.memory_bytes or 0) < BYTES_OF_FROZEN_WEIGHTS * (f.num_parameters or 0),
        {CPT: RULED_OUT, LORA_CPT: RULED_OUT, SFT: RULED_OUT},
        lambda f, t: (
            f"the weights alone are {BYTES_OF_FROZEN_WEIGHTS * (f.num_parameters or 0) / 1e9:,.3g} GB in bf16, all "
            f"devices have {(f.memory_bytes or 0) / 1e9:,.3g} GB"
        ),
        "2 bytes a parameter in bf16",
    ),
    Rule(
        "the base is an instruct model",
        ("instruct_signs",),
        lambda f, t: bool(f.instruct_signs),
        {CPT: -1},
        lambda f, t: f"{'; '.join(f.instruct_signs)}: training on raw text costs it its manners",
        "Jindal et al. 2024 (arXiv 2410.10739): about 10 points of IFEval after 1B tokens",
    ),
    Rule(
        "nothing to replay",
        ("general_tokens",),
        lambda f, t: not f.general_tokens,
        {CPT: -1},
        lambda f, t: "no general text was given, and without replay full training forgets most",
        "Ibrahim et al. 2024 (arXiv 2403.08763): loss on the old data 2.44 without replay, 2.23 with 5%",
    ),
)


def _distance(facts: Facts) -> str:
    parts = []
    if facts.relative_overlap is not None:
        parts.append(f"frequent words overlap {_percent(facts.relative_overlap)} as much as general text with itself")
    if facts.fertility_ratio is not None:
        parts.append(f"the tokenizer spends {facts.fertility_ratio:.2f} times the tokens a byte")
    return "; ".join(parts)


def effective_thresholds(changes: Mapping[str, float] | None = None) -> dict[str, float]:
    """Each threshold's value, with a user's `changes`."""
    return {name: threshold.value for name, threshold in THRESHOLDS.items()} | dict(changes or {})


def _is_unknown(facts: Facts, name: str) -> bool:
    return getattr(facts, name) in (None, UNKNOWN)


def rank(facts: Facts, changes: Mapping[str, float] | None = None) -> Ranking:
    """The options by their points, those ruled out last; of equals the cheaper first."""
    thresholds = effective_thresholds(changes)
    silent = [rule for rule in RULES if any(_is_unknown(facts, name) for name in rule.needs)]
    held = [rule for rule in RULES if rule not in silent and rule.holds(facts, thresholds)]
    options = []
    for option in OPTIONS:
        reasons = tuple(
            Reason(rule.name, rule.effects[option], rule.reason(facts, thresholds), rule.source)
            for rule in held
            if option in rule.effects
        )
        points = sum(one.effect for one in reasons if isinstance(one.effect, int))
        options.append(RankedOption(option, points, any(one.effect == RULED_OUT for one in reasons), reasons))
    ordered = sorted(options, key=lambda one: (one.ruled_out, -one.points))  # stable: the cheaper stays in front
    unknown = dict.fromkeys(name for rule in silent for name in rule.needs if _is_unknown(facts, name))
    return Ranking(
        tuple(ordered), tuple(rule.name for rule in held), tuple(rule.name for rule in silent), tuple(unknown)
    )
