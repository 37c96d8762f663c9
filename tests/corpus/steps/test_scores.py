from __future__ import annotations

import pickle
import random
import string
import sysconfig
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpt_dist.corpus.step import Dropped
from cpt_dist.corpus.steps import steps_before_near_dedup, text_view
from cpt_dist.corpus.steps.content import Content, content_of
from cpt_dist.corpus.steps.density import density
from cpt_dist.corpus.steps.measures import MEASURES, RULES, held, judge, measure
from cpt_dist.corpus.steps.repetition import repetition_measures, variety
from cpt_dist.corpus.steps.scores import Scores, Thresholds, combine, count_keywords
from cpt_dist.corpus.steps.text_view import TextView, excerpt
from cpt_dist.curation_config import QualityConfig
from cpt_dist.curation_profiles import PROFILES, resolve_steps

STOP_WORDS = QualityConfig().stop_words
SPAM = "Buy cheap watches now! Click here for the best cheap watches. " * 60


def measures_of(text: str, content: str = "prose") -> dict[str, float]:
    return measure(TextView(text), content, STOP_WORDS, 2000)


HITS = {
    "words": "Too short.",
    "mean_word_length": "pneumonoultramicroscopic " * 60,
    "symbols_per_word": "# tag " * 60,
    "bullet_lines": "- one of many things\n" * 60,
    "ellipsis_lines": "to be continued...\n" * 60,
    "letter_words": "1 2 3 4 word " * 60,
    "stop_words": "completely different vocabulary " * 60,
    "sentences": "no end in sight",
    "terminal_lines": "a line without an end\n" * 20,
    "long_lines": "menu\n" * 20,
    "web_lines": "Please enable JavaScript to see this page\n" * 5,
    "lorem_ipsum": "Lorem ipsum dolor sit amet.",
    "curly_brackets": "if (x) {\n}\n" * 20,
    "duplicate_line_characters": "the same line again and again\n" * 20,
    "short_lines": "short line\n" * 20,
    "duplicate_lines": "the same line again and again\n" * 20,
    "duplicate_paragraphs": "a paragraph\n\n" * 20,
    "duplicate_paragraph_characters": "a paragraph\n\n" * 20,
    **{f"top_{n}gram": "one two three four " * 60 for n in (2, 3, 4)},
    **{f"duplicate_{n}gram": SPAM for n in range(5, 11)},
    "variety": "very " * 200,
    "letters": "12 + 34 = 46, (7 / 8) * 9 - 10\n" * 5,
    "digits": "12 345 6789\n" * 20,
    "capitals": "ALL OF THIS IS SHOUTED",
    "white_space": "a" + " " * 50,
    "damaged_characters": "da\ufffdm\ufffdaged",
}


@pytest.mark.parametrize("name", list(dict.fromkeys(rule.measure for rule in RULES if "prose" in rule.contents)))
def test_every_rule_for_prose_has_a_text_that_misses_its_bound_and_one_that_holds_it(name, prose):
    families = {rule.family for rule in RULES if rule.measure == name and "prose" in rule.contents}
    missed = judge(measures_of(HITS[name]), "prose", {})[1]
    assert {f"{family}.{name}" for family in families} <= set(missed)
    fine = judge(measures_of(prose), "prose", {})[1]
    assert not any(entry.endswith(f".{name}") for entry in fine)


def test_rules_for_code_and_tables_hit_and_miss(code):
    minified = "var a=1;" * 300
    missed = judge(measures_of(minified, "code"), "code", {})[1]
    assert {"format.mean_line_length", "format.longest_line"} <= set(missed)
    assert judge(measures_of(code, "code"), "code", {})[1] == []
    table = "name,age,town\n" + "".join(f"person {i},{20 + i},town {i * 7}\n" for i in range(20))
    ragged = "".join(f"{'x,' * (i % 7)}y{i}\n" for i in range(40))
    assert judge(measures_of(table, "table"), "table", {})[1] == []
    assert "format.agreeing_rows" in judge(measures_of(ragged, "table"), "table", {})[1]


def test_code_is_not_judged_by_the_rules_of_prose(document, code):
    # E16: code has too few letters and sentences for a filter made for prose.
    step = Scores(QualityConfig())
    result = step(document(code, labels={"content": "code"}))
    assert not {"gopher", "c4", "fineweb"} & set(result.scores)
    assert result.scores["quality"] > 0.95


def test_the_standard_library_scores_as_good_code():
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[::8]
    texts = [path.read_text(encoding="utf-8") for path in files]
    scores = [judge(measures_of(text, "code"), "code", {})[0]["format"] for text in texts]
    assert min(scores) > 0.9
    assert sum(content_of(text) == "code" for text in texts) >= 0.85 * len(texts)


def test_content_is_told_apart(prose, code):
    table = "id\tname\tvalue\n" + "".join(f"{i}\tn{i}\t{i * i}\n" for i in range(10))
    assert [content_of(text) for text in (prose, code, table, "")] == ["prose", "code", "table", "prose"]


def test_content_and_the_language_of_code_become_labels(document, prose, code):
    assert Content()(document(prose)).labels == {"content": "prose"}
    assert Content()(document(code)).labels == {"content": "code", "code_language": "python"}
    assert Content("table")(document(prose)).labels == {"content": "table"}


def _page(rng: random.Random, words: int) -> str:
    """Natural in its repeats: words are drawn by Zipf's law, sentences end."""
    vocabulary = ["".join(rng.choice(string.ascii_lowercase) for _ in range(rng.randrange(2, 9))) for _ in range(5000)]
    weights = [1 / (rank + 1) for rank in range(len(vocabulary))]
    text = rng.choices(vocabulary, weights, k=words)
    return " ".join(word.capitalize() + "." if place % 12 == 0 else word for place, word in enumerate(text))


def test_repetition_does_not_depend_on_length():
    # E16: the ratio of types to tokens falls with length (Heaps), so long documents looked repetitive.
    text = _page(random.Random(0), 40_000).split(" ")
    short, long = (TextView(" ".join(text[:size])) for size in (1_000, 40_000))
    ratio = [len(view.counts) / len(view.words) for view in (short, long)]
    assert ratio[1] < 0.4 * ratio[0]
    families = [judge({**repetition_measures(view, 2000)}, "prose", {})[0]["repetition"] for view in (short, long)]
    assert families[0] == pytest.approx(families[1], abs=0.02)
    assert variety(short.word_numbers) == pytest.approx(variety(long.word_numbers), abs=0.05)


def test_repeated_text_scores_low_however_short_or_long(prose):
    for times in (20, 60, 300):
        assert judge(measures_of("Buy cheap watches now! " * times), "prose", {})[0]["repetition"] < 0.5
    assert judge(measures_of(prose), "prose", {})[0]["repetition"] == 1.0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 6), max_size=60), st.integers(1, 20))
def test_variety_is_the_mean_over_all_windows(numbers, window):
    hashes = np.array(numbers, dtype=np.uint64)
    size = min(window, len(numbers))
    windows = [numbers[start : start + size] for start in range(len(numbers) - size + 1)] if numbers else []
    expected = sum(len(set(part)) / size for part in windows) / len(windows) if windows else 1.0
    assert variety(hashes, window) == pytest.approx(expected)


def test_a_repeat_counts_within_the_window_only():
    text = _page(random.Random(4), 3_000)
    start = " ".join(text.split(" ")[:100])
    whole = TextView(f"{text} {start}")
    near, far = (repetition_measures(whole, window)["duplicate_10gram"] for window in (4000, 2000))
    assert near > 0.02
    assert far == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "c", "dd", "eee"]), min_size=1, max_size=50))
def test_repeated_runs_of_words_are_counted_once_each(words):
    measures = repetition_measures(TextView(" ".join(words)), 2000)
    pairs = Counter(pairwise(words))
    most = max(pairs.values(), default=0)
    sizes = [most * len("".join(pair)) for pair, count in pairs.items() if count == most > 1]
    characters = sum(map(len, words))
    assert not sizes or measures["top_2gram"] == pytest.approx(min(sizes[0] / characters, 1))
    for n in (5, 7, 10):
        seen, covered = set(), set()
        for place in range(len(words) - n + 1):
            run = tuple(words[place : place + n])
            if run in seen:
                covered |= set(range(place, place + n))
            seen.add(run)
        expected = sum(len(words[place]) for place in covered) / characters
        assert measures[f"duplicate_{n}gram"] == pytest.approx(expected)


def test_scripts_without_spaces_are_not_called_one_long_word(document):
    chinese = (
        "港口位于市场的南边。大多数早晨，渔船在教堂钟声第一次敲响之前就回来了。住在那里的人都不觉得这是什么奇观。" * 2
    )
    measures = measures_of(chinese)
    assert measures["words"] > 50
    assert "mean_word_length" not in measures
    assert "stop_words" not in measures
    assert not [name for name in judge(measures, "prose", {})[1] if name.startswith("gopher")]


def test_dense_text_is_told_from_boilerplate_and_noise(prose):
    rng = random.Random(1)
    noise = "".join(rng.choice(string.ascii_letters + string.digits) for _ in range(2000))
    boilerplate = "All rights reserved. Terms apply. Subscribe to the newsletter. " * 30
    assert density(TextView(boilerplate)) < 0.5 < 0.8 < density(TextView(prose)) < 1.3 < density(TextView(noise))


def test_density_does_not_depend_on_length():
    text = _page(random.Random(2), 8000)
    ratios = [density(TextView(text[:size])) for size in (1000, 4000, 16000, 40000)]
    assert max(ratios) / min(ratios) < 1.3


def test_quality_counts_only_the_scores_that_exist():
    # E18: missing components counted as 0, so two good filters gave 0.39 and everything was rejected.
    weights = {"format": 1.0, "relevance": 1.0, "perplexity": 3.0}
    assert combine({"format": 1.0, "relevance": 1.0}, weights) == 1.0
    assert combine({"format": 1.0, "relevance": 0.0}, {"format": 3.0, "relevance": 1.0}) == 0.75
    assert combine({"c4": 1.0}, {"c4": 0.0}) is None


def test_good_prose_has_a_quality_of_nearly_one_with_weights_that_act(document, prose):
    result = Scores(QualityConfig())(document(prose))
    assert result.scores["quality"] > 0.97
    assert result.text == prose
    low = Scores(QualityConfig(weights={"keywords": 1.0}, keywords=["plaintiff"]))(document(prose))
    assert low.scores["quality"] == 0.0


def test_a_huge_document_is_scored_by_an_even_excerpt(document, monkeypatch, prose):
    # E7: documents above a length were not scored at all. A head alone would miss what follows it.
    monkeypatch.setattr(text_view, "EXCERPT_CHARACTERS", 8_000)
    huge = _page(random.Random(3), 4_000) + "\n" + SPAM * 10
    result = Scores(QualityConfig())(document(huge))
    assert result.text == huge
    assert result.counts["scored_by_excerpt"] == 1
    assert result.scores["words"] < 2_000
    assert "missed.repetition.duplicate_5gram" in result.counts
    assert "scored_by_excerpt" not in Scores(QualityConfig())(document(prose)).counts
    assert excerpt(huge).startswith(huge[:900])
    assert excerpt(huge).endswith(SPAM[-900:])


def test_nothing_is_dropped_without_a_threshold(document):
    steps = steps_before_near_dedup(resolve_steps("general", {"language": {"detector": "none"}}, "x"))
    for text in HITS.values():
        result = document(text)
        for step in steps:
            result = step(result)
        assert not isinstance(result, Dropped)


def test_thresholds_name_score_value_and_bound(document, prose):
    given = document(prose, scores={"quality": 0.25, "variety": 0.9})
    assert Thresholds({"quality": (0.5, None)})(given) == Dropped("quality_low", "quality 0.25, at least 0.5 wanted")
    assert Thresholds({"variety": (None, 0.8)})(given) == Dropped("variety_high", "variety 0.9, at most 0.8 wanted")
    assert Thresholds({"variety": (0.9, 0.9), "absent": (1, None)})(given) is given


def test_bounds_of_the_user_take_the_place_of_the_rules_own(document):
    text = "Ten words of one small document that is quite fine."
    default, changed = (Scores(QualityConfig(bounds=bounds))(document(text)) for bounds in ({}, {"words": [5, None]}))
    assert "missed.gopher.words" in default.counts
    assert "missed.gopher.words" not in changed.counts
    assert changed.scores["gopher"] > default.scores["gopher"]


def test_keywords_are_whole_words_and_phrases():
    # Substrings made 'contractor' a contract and 'court' of courteous (row 21).
    view = TextView("The Court held: due process, (due   Process) matters to contractors; courteous courts.")
    assert count_keywords(view, ["court", "due process", "contract", "summary judgment"]) == 3


def test_held_falls_in_a_straight_line():
    assert [held(v, 10, None) for v in (10, 7.5, 5, 0)] == [1, 0.5, 0, 0]
    assert [held(v, None, 0.2) for v in (0.2, 0.3, 0.4, 1)] == [1, pytest.approx(0.5), 0, 0]
    assert held(1, None, 0) == 0


def test_steps_pickle(document, prose):
    step = Scores(QualityConfig())
    assert pickle.loads(pickle.dumps(step))(document(prose)) == step(document(prose))


def test_every_measure_of_a_rule_is_measured_for_its_contents(prose, code):
    for content, text in (("prose", prose), ("code", code), ("table", "a,b,c\n1,2,3\n")):
        wanted = {rule.measure for rule in RULES if content in rule.contents}
        assert wanted <= set(measures_of(text, content))
    assert set(MEASURES) == {rule.measure for rule in RULES}


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_makes_its_steps(profile):
    assert steps_before_near_dedup(resolve_steps(profile, {}, "x"))
