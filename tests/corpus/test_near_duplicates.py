"""Near-duplicates: found where texts are alike, kept where they aren't, and which of them stays."""

import random

import numpy as np
import pytest

from cpt_dist.corpus.curation.curate import curate
from cpt_dist.corpus.curation.minhash import Bands, Signer, choose_bands, similarities
from cpt_dist.corpus.ngrams import words_of
from tests.corpus.test_curation import curation_config, dropped_rows

SIZE = 5


def random_text(random_, words=200):
    return " ".join(f"w{random_.randrange(5000)}" for _ in range(words))


def replaced(text, number, random_):
    words = text.split()
    for place in random_.sample(range(len(words)), number):
        words[place] = f"x{random_.randrange(5000)}"
    return " ".join(words)


def jaccard(one, other):
    a, b = ({tuple(w[i : i + SIZE]) for i in range(len(w) - SIZE + 1)} for w in (words_of(one), words_of(other)))
    return len(a & b) / len(a | b)


def test_planted_pairs_are_found_from_085_on_and_kept_up_to_05(tmp_path):
    random_ = random.Random(3)
    texts, alike = [], []
    while len(texts) < 800:
        text = random_text(random_)
        other = replaced(text, random_.choice([1, 2, 3, 14, 20, 40]), random_)
        texts += [text, other]
        alike.append(jaccard(text, other))
    config = curation_config(tmp_path, {"law": texts, "news": ["other words"]}, block_bytes="4M")
    config.data.sources["law"].curation = {"quality": {"enabled": False}, "language": {"detector": "none"}}
    curate(config)
    gone = {row["record"] // 2 for row in dropped_rows(tmp_path, "law")}
    near = [pair for pair, similarity in enumerate(alike) if similarity >= 0.85]
    far = [pair for pair, similarity in enumerate(alike) if similarity <= 0.5]
    assert min(len(near), len(far)) > 100
    assert sum(pair in gone for pair in near) >= 0.95 * len(near)
    assert sum(pair not in gone for pair in far) >= 0.99 * len(far)


def test_of_a_chain_only_what_is_like_a_document_that_stays_goes(tmp_path):
    """b is like a and like c, which aren't like each other: the best of the three decides who goes."""
    random_ = random.Random(5)
    a = random_text(random_)
    b = replaced(a, 4, random_)
    c = replaced(b, 5, random_)
    assert jaccard(a, b) > 0.78
    assert jaccard(b, c) > 0.75
    assert jaccard(a, c) < 0.68
    for scores, expected in (((3, 2, 1), {1}), ((1, 3, 2), {0, 2}), ((1, 2, 3), {1})):
        folder = tmp_path / str(scores)
        lines = [
            f'{{"text": "{text}", "good": {score}}}'.encode() for text, score in zip((a, b, c), scores, strict=True)
        ]
        config = curation_config(folder, {"law": lines, "news": ["other words"]})
        config.data.sources["law"].score_fields = {"good": "good"}
        config.data.sources["law"].curation = {"quality": {"enabled": False}, "language": {"detector": "none"}}
        config.data.curation.near_duplicates.keep_by = "good"
        curate(config)
        assert {row["record"] for row in dropped_rows(folder, "law")} == expected


def test_signatures_estimate_the_similarity_of_sets_of_shingles():
    random_ = random.Random(1)
    signer = Signer(SIZE, 512)
    for number in (1, 5, 15, 60):
        text = random_text(random_, 400)
        other = replaced(text, number, random_)
        (one, two), _ = signer.signatures([text, other])
        assert similarities(one, two[None])[0] == pytest.approx(jaccard(text, other), abs=4 * np.sqrt(0.25 / 512))


def test_case_and_punctuation_do_not_hide_a_duplicate_and_no_words_resemble_nothing():
    signer = Signer(SIZE, 64)
    (one, two, _), has_words = signer.signatures(
        ["One, two; three -- four five SIX", "one two three four five six", "…"]
    )
    assert (one == two).all()
    assert has_words.tolist() == [True, True, False]


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.75, 0.8, 0.9])
def test_bands_find_pairs_at_the_threshold_and_are_as_long_as_that_allows(threshold):
    bands = choose_bands(threshold, 128)
    assert bands.count * bands.rows <= 128
    assert bands.recall(threshold) >= 0.98
    assert Bands(128 // (bands.rows + 1), bands.rows + 1).recall(threshold) < 0.98


def curated_pair(folder, texts, near=None, **curation):
    """Records that are dropped of a curation of these texts, with their reasons."""
    config = curation_config(folder, {"law": texts, "news": ["other words"]})
    config.data.sources["law"].curation = {"language": {"detector": "none"}, **curation}
    for name, value in (near or {}).items():
        setattr(config.data.curation.near_duplicates, name, value)
    curate(config)
    return {row["record"]: row["reason"] for row in dropped_rows(folder, "law")}


def test_the_threshold_of_the_configuration_decides_what_is_alike(tmp_path):
    random_ = random.Random(7)
    text = random_text(random_)
    texts = [text, replaced(text, 9, random_)]
    assert 0.55 < jaccard(*texts) < 0.7
    unscored = {"quality": {"enabled": False}}
    assert not curated_pair(tmp_path / "strict", texts, **unscored)
    assert list(curated_pair(tmp_path / "loose", texts, {"threshold": 0.4}, **unscored).values()) == ["near_duplicate"]


def test_a_document_that_was_dropped_for_its_score_is_never_why_a_better_one_goes(tmp_path):
    random_ = random.Random(9)
    short = random_text(random_)
    texts = [short, f"{short} and more"]
    assert jaccard(*texts) > 0.9
    quality = {"perplexity": {"enabled": False}, "thresholds": {"words": [201, None]}}
    assert curated_pair(tmp_path, texts, quality=quality) == {0: "words_low"}


def test_of_near_duplicates_the_one_of_the_best_quality_stays_wherever_it_stands(tmp_path):
    good = " ".join(f"The {word} of this place is old." for word in random_text(random.Random(11), 60).split())
    shouted = good.replace("The", "THE").replace("place", "PLACE").replace("is old", "IS OLD")
    for name, texts, gone in (("first", [good, shouted], 1), ("last", [shouted, good], 0)):
        assert curated_pair(tmp_path / name, texts) == {gone: "near_duplicate"}
