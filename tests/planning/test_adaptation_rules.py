"""Every rule at both sides of its border, the whole truth table of facts, and cases whose answer is agreed on."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from cpt_dist.planning.adaptation import (
    CPT,
    LORA_CPT,
    OPTIONS,
    PROMPT,
    RAG,
    SFT,
    THRESHOLDS,
    Facts,
    Measured,
)
from cpt_dist.planning.adaptation_rules import RULED_OUT, RULES, effective_thresholds, rank
from cpt_dist.planning.adaptation_warnings import warnings

M, B = 10**6, 10**9
PLAIN = Facts(domain_tokens=50 * M, general_tokens=50 * M)
LEARNED, NOT_LEARNED, UNDECIDED = Measured(0.05, 0.04, 0.06), Measured(0.0, -0.005, 0.005), Measured(0.02, -0.01, 0.05)


def first(facts):
    return rank(facts).options[0].option


def points(facts, option):
    return next(one for one in rank(facts).options if one.option == option).points


BORDERS = [
    ("volume below the floor", {"domain_tokens": 10 * M - 1}, {"domain_tokens": 10 * M}),
    ("modest volume", {"domain_tokens": 10 * M}, {"domain_tokens": 10 * M - 1}),
    ("modest volume", {"domain_tokens": 100 * M - 1}, {"domain_tokens": 100 * M}),
    ("ample volume", {"domain_tokens": 100 * M}, {"domain_tokens": 100 * M - 1}),
    ("the pilot learned", {"learnability": Measured(0.05, 0.0101, 0.1)}, {"learnability": Measured(0.05, 0.01, 0.1)}),
    ("the pilot learned", {"learnability": LEARNED}, {"learnability": Measured(0.05)}),
    (
        "the pilot learned nothing",
        {"learnability": Measured(0.0, -0.1, 0.01)},
        {"learnability": Measured(0.0, -0.1, 0.0101)},
    ),
    ("the domain is harder", {"gap": Measured(0.1, 0.01, 0.2)}, {"gap": Measured(0.1, 0.0, 0.2)}),
    ("the domain is far", {"relative_overlap": 0.5}, {"relative_overlap": 0.501}),
    ("the domain is far", {"fertility_ratio": 1.5}, {"fertility_ratio": 1.499}),
    (
        "the domain is near",
        {"relative_overlap": 0.8, "fertility_ratio": 1.1},
        {"relative_overlap": 0.799, "fertility_ratio": 1.1},
    ),
    (
        "the domain is near",
        {"relative_overlap": 0.8, "fertility_ratio": 1.1},
        {"relative_overlap": 0.8, "fertility_ratio": 1.11},
    ),
    ("behaviour is needed", {"need": "behaviour"}, {"need": "knowledge"}),
    ("knowledge is needed", {"need": "knowledge"}, {"need": "language"}),
    ("a language is needed", {"need": "language"}, {"need": "behaviour"}),
    ("no examples", {"instructions": 0}, {"instructions": 1}),
    ("few examples", {"instructions": 1}, {"instructions": 0}),
    ("few examples", {"instructions": 99}, {"instructions": 100}),
    ("enough examples", {"instructions": 500}, {"instructions": 499}),
    ("good enough already", {"accuracy": 0.8, "target": 0.8}, {"accuracy": 0.79, "target": 0.8}),
    ("live facts", {"fresh_days": 1.0}, {"fresh_days": 1.1}),
    ("facts change often", {"fresh_days": 1.1}, {"fresh_days": 1.0}),
    ("facts change often", {"fresh_days": 30.0}, {"fresh_days": 30.1}),
    ("documents must be removable", {"privacy": "removable"}, {"privacy": "none"}),
    ("readers may see different documents", {"privacy": "per_reader"}, {"privacy": "removable"}),
    ("no room in the prompt", {"max_prompt_tokens": 999}, {"max_prompt_tokens": 1000}),
    (
        "everything fits into a prompt",
        {"domain_tokens": 4096, "context_tokens": 8192},
        {"domain_tokens": 4097, "context_tokens": 8192},
    ),
    (
        "everything fits into a prompt",
        {"domain_tokens": 2000, "context_tokens": 8192, "max_prompt_tokens": 2000},
        {"domain_tokens": 2000, "context_tokens": 8192, "max_prompt_tokens": 1999},
    ),
    ("budget below the floor", {"budget_tokens": 10 * M - 1}, {"budget_tokens": 10 * M}),
    ("budget below one reading", {"budget_tokens": 10 * M}, {"budget_tokens": 10 * M - 1}),
    (
        "budget below one reading",
        {"domain_tokens": 95 * M, "budget_tokens": 100 * M - 1},
        {"domain_tokens": 95 * M, "budget_tokens": 100 * M},
    ),
    (
        "too little memory for full training",
        {"num_parameters": B, "memory_bytes": 16 * B - 1},
        {"num_parameters": B, "memory_bytes": 16 * B},
    ),
    (
        "too little memory for the frozen model",
        {"num_parameters": B, "memory_bytes": 2 * B - 1},
        {"num_parameters": B, "memory_bytes": 2 * B},
    ),
    ("the base is an instruct model", {"instruct_signs": ("a chat template",)}, {"instruct_signs": ()}),
    ("nothing to replay", {"general_tokens": 0}, {"general_tokens": 1}),
]


@pytest.mark.parametrize(("name", "inside", "outside"), BORDERS)
def test_a_rule_holds_on_one_side_of_its_border_only(name, inside, outside):
    assert name in rank(replace(PLAIN, **inside)).held
    assert name not in rank(replace(PLAIN, **outside)).held


def test_every_rule_has_a_border_test():
    assert {name for name, _, _ in BORDERS} == {rule.name for rule in RULES}


def test_every_rule_and_every_threshold_says_where_it_is_from():
    assert all(rule.source for rule in RULES)
    assert all("arXiv" in one.source or "heuristic" in one.source for one in THRESHOLDS.values())
    assert all(option in OPTIONS for rule in RULES for option in rule.effects)


def test_the_page_shows_the_points_of_the_rules():
    page = (Path(__file__).resolve().parents[2] / "docs" / "diagnosis.md").read_text(encoding="utf-8")
    table = page[page.index("| rule | ") :].split("\n\n")[0].splitlines()
    assert table[0] == f"| rule | {' | '.join(OPTIONS)} |"
    shown = [[cell.strip() for cell in line.split("|")[2:-1]] for line in table[2:]]
    expected = [[rule.effects.get(option, "") for option in OPTIONS] for rule in RULES]
    assert shown == [[f"{e:+d}" if isinstance(e, int) else e.removeprefix("ruled ") for e in row] for row in expected]


def test_what_is_unknown_speaks_for_and_against_nothing():
    ranking = rank(PLAIN)
    assert ranking.held == ("modest volume",)
    assert {"learnability", "gap", "need", "accuracy", "fresh_days", "budget_tokens"} <= set(ranking.unknown)


def test_with_nothing_known_the_cheapest_way_comes_first():
    assert [one.option for one in rank(Facts(domain_tokens=500 * M, general_tokens=1)).options] == [
        CPT,
        PROMPT,
        RAG,
        SFT,
        LORA_CPT,
    ]
    ranking = rank(Facts(domain_tokens=500 * M, general_tokens=1), {"ample_tokens": B})
    assert [one.option for one in ranking.options] == [LORA_CPT, PROMPT, RAG, SFT, CPT]


VALUES = {
    "domain_tokens": (3000, 5 * M, 50 * M, 5 * B),
    "learnability": (None, LEARNED, NOT_LEARNED, UNDECIDED),
    "relative_overlap": (0.3, 0.9),
    "need": ("unknown", "knowledge", "behaviour", "language"),
    "instructions": (None, 0, 50, 1000),
    "fresh_days": (None, 0.5, 10.0, 400.0),
    "privacy": ("unknown", "per_reader"),
    "budget_tokens": (None, M, 20 * B),
}


def table():
    names = list(VALUES)
    for row in itertools.product(*VALUES.values()):
        yield Facts(**dict(zip(names, row, strict=True)), general_tokens=B, context_tokens=8192)


def test_the_whole_truth_table_keeps_its_promises():
    floor = effective_thresholds()["floor_tokens"]
    seen = set()
    for facts in table():
        ranking = rank(facts)
        best = ranking.options[0]
        by_name = {one.option: one for one in ranking.options}
        seen.add(best.option)
        assert sorted(by_name) == sorted(OPTIONS)
        assert not best.ruled_out
        if facts.domain_tokens < floor or facts.privacy == "per_reader" or facts.budget_tokens == M:
            assert by_name[CPT].ruled_out
            assert by_name[LORA_CPT].ruled_out
        if facts.instructions == 0:
            assert by_name[SFT].ruled_out
        if facts.learnability is NOT_LEARNED and facts.need != "language":
            assert best.option not in (CPT, LORA_CPT)
        if facts.fresh_days == 0.5 and facts.need != "language":
            assert best.option not in (CPT, LORA_CPT)
        for one in ranking.options:
            assert one.points == sum(reason.effect for reason in one.reasons if reason.effect != RULED_OUT)
    assert seen == set(OPTIONS)


AGREED = {
    "a new language with much text": (
        Facts(5 * B, B, relative_overlap=0.1, fertility_ratio=2.5, learnability=LEARNED, need="language"),
        CPT,
    ),
    "500 instructions for a format": (Facts(200_000, M, need="behaviour", instructions=500), SFT),
    "facts of today": (Facts(200 * M, B, learnability=LEARNED, need="knowledge", fresh_days=1.0), RAG),
    "a far, learnable domain of 900M tokens": (
        Facts(900 * M, B, relative_overlap=0.4, gap=Measured(0.2, 0.1, 0.3), learnability=LEARNED),
        CPT,
    ),
    "a far domain of 100k tokens": (Facts(100_000, M, relative_overlap=0.3, need="knowledge"), RAG),
    "a handbook that fits into the prompt": (Facts(20_000, M, context_tokens=131_072), PROMPT),
    "a model that is good enough": (Facts(500 * M, B, learnability=LEARNED, accuracy=0.9, target=0.8), PROMPT),
    "documents for some readers only": (Facts(5 * B, B, learnability=LEARNED, privacy="per_reader"), RAG),
    "much text of which nothing is learned": (Facts(5 * B, B, learnability=NOT_LEARNED), PROMPT),
    "a near, learnable domain of 30M tokens": (
        Facts(30 * M, B, relative_overlap=0.9, fertility_ratio=1.0, learnability=LEARNED),
        LORA_CPT,
    ),
    "much text, little memory": (
        Facts(5 * B, B, learnability=LEARNED, num_parameters=70 * B, memory_bytes=8 * 80 * B),
        LORA_CPT,
    ),
}


@pytest.mark.parametrize("case", AGREED)
def test_an_agreed_case_has_the_agreed_answer(case):
    facts, expected = AGREED[case]
    assert first(facts) == expected


def test_more_text_never_speaks_against_full_training():
    facts = [replace(PLAIN, domain_tokens=tokens) for tokens in (M, 10 * M, 100 * M, B)]
    scores = [(not next(o for o in rank(f).options if o.option == CPT).ruled_out, points(f, CPT)) for f in facts]
    assert scores == sorted(scores)


def test_a_smaller_loss_on_the_domain_than_on_general_text_is_no_argument():
    assert rank(replace(PLAIN, gap=Measured(-0.5, -0.6, -0.4))).options == rank(PLAIN).options


def test_a_changed_threshold_moves_its_border():
    facts = replace(PLAIN, domain_tokens=2 * M)
    assert "volume below the floor" in rank(facts).held
    assert "volume below the floor" not in rank(facts, {"floor_tokens": M}).held


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"instruct_signs": ("a chat template",)}, "looks like an instruct model (a chat template)"),
        ({"domain_tokens": 5 * M}, "The corpus is small: 5,000,000"),
        ({"general_tokens": 0}, "No general text was given"),
        ({"general_tokens": M}, "General text is short: 5% replay"),
        ({"general_tokens": 50 * M, "fertility_ratio": 2.0, "domain_tokens": 500 * M}, "25% replay"),
    ],
)
def test_a_warning_names_what_is_wrong(change, named):
    assert any(named in one for one in warnings(replace(PLAIN, **change)))


def test_a_large_corpus_with_replay_and_a_base_model_has_no_warning():
    assert warnings(Facts(domain_tokens=B, general_tokens=B)) == []
