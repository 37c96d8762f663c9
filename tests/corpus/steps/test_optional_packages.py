"""The packages behind optional extras as they are, not stand-ins; each test is skipped where its package is missing."""

import math
import random

import pytest

from cpt_dist.corpus.steps.language import Language
from cpt_dist.corpus.steps.language_models import KenlmModel
from cpt_dist.corpus.steps.pii_names import PersonNames
from cpt_dist.curation_config import LanguageConfig, PiiConfig
from cpt_dist.errors import UserError

ARPA = """\\data\\
ngram 1=5
ngram 2=4

\\1-grams:
-1.0\t<unk>
-99\t<s>\t-0.3
-1.0\t</s>
-0.6\tthe\t-0.2
-0.7\tcourt\t-0.2

\\2-grams:
-0.2\t<s> the
-0.3\tthe court
-0.2\tcourt </s>
-0.9\tcourt the

\\end\\
"""
ENGLISH = "the court held that the treaty was in force and the judge said so"
GERMAN = "das gericht hielt fest dass der vertrag in kraft war und der richter sagte es"


def test_kenlm_reads_a_model_and_costs_are_its_probabilities(tmp_path):
    pytest.importorskip("kenlm")
    (tmp_path / "two.arpa").write_text(ARPA)
    model = KenlmModel(str(tmp_path / "two.arpa"))
    assert model.bits_per_byte(b"the court\n\nthe court") == pytest.approx(2 * 0.7 * math.log2(10) / 20)
    (tmp_path / "bad.arpa").write_text("no model")
    with pytest.raises(UserError, match="is no KenLM model") as caught:
        KenlmModel(str(tmp_path / "bad.arpa"))
    assert "\n" not in str(caught.value)


def test_fasttext_tells_languages_apart_over_lines(document, tmp_path):
    fasttext = pytest.importorskip("fasttext")
    choose = random.Random(0)
    lines = [
        f"__label__{code} {' '.join(choose.choices(words.split(), k=8))}\n"
        for _ in range(400)
        for code, words in (("en", ENGLISH), ("de", GERMAN))
    ]
    (tmp_path / "train.txt").write_text("".join(lines))
    model = fasttext.train_supervised(str(tmp_path / "train.txt"), dim=8, epoch=20, minn=2, maxn=4, thread=1, verbose=0)
    model.save_model(str(tmp_path / "lid.bin"))
    step = Language(LanguageConfig(detector="fasttext", model=str(tmp_path / "lid.bin"), wanted=["en"]))
    assert step(document("the judge said that\nthe court held the treaty")).labels["language"] == "en"
    assert step(document("der richter sagte dass\ndas gericht den vertrag hielt")).reason == "language"
    (tmp_path / "bad.bin").write_text("no model")
    with pytest.raises(UserError, match="is no fastText model"):
        Language(LanguageConfig(detector="fasttext", model=str(tmp_path / "bad.bin")))(document("text"))


def test_presidio_masks_names_that_a_model_of_spacy_finds(document, tmp_path):
    pytest.importorskip("presidio_analyzer")
    import spacy

    model = spacy.blank("en")
    model.add_pipe("entity_ruler").add_patterns([{"label": "PERSON", "pattern": "Anna Meier"}])
    model.to_disk(tmp_path / "names")
    step = PersonNames(PiiConfig(names="mask", names_model=str(tmp_path / "names")))
    masked = step(document("x " * 15_000 + "\nDear Anna Meier, and Anna Meier again."))
    assert masked.text.endswith("\nDear [PERSON], and [PERSON] again.")
    assert masked.counts == {"pii_person": 2, "pii_person_masked": 2}
