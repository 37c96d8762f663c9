"""launch/verdict.py on tiny models: the files, the claims, and every mistake at once."""

import json
import re

import pytest
from omegaconf import OmegaConf

from cpt_dist.config import CptConfig
from cpt_dist.evaluation.verdict import judge
from cpt_dist.evaluation.verdict_report import write_verdict
from tests.evaluation.suites.small import suite_file
from tests.helpers.models import tiny_llama
from tests.helpers.tiny_run import build, launch, write_experiment, write_tokenizer


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verdict")
    mapping = build(folder)
    for name, seed in (("adapted", 7), ("control", 8)):
        tiny_llama(folder / name, seed=seed)
        write_tokenizer(folder / name)
    mapping["evaluate"] |= {"adapted": str(folder / "adapted")}
    mapping["verdict"] = {"control": str(folder / "control"), "averages": [0.5], "out": str(folder / "verdict")}
    return folder, mapping


def configured(mapping):
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(CptConfig), mapping))


def test_a_model_compared_with_itself_neither_helped_nor_failed_and_kept_what_it_could(prepared):
    _, mapping = prepared
    same = mapping | {"evaluate": mapping["evaluate"] | {"adapted": mapping["model"]["path"]}, "verdict": {}}
    found = judge(configured(same)).verdict
    assert found.word == "undecided"
    assert next((a.claim.kind, a.gain.value, a.status) for a in found.answers) == ("goal", 0.0, "undecided")


def test_the_page_is_one_file_that_fetches_nothing_and_shows_the_numbers_of_the_record(prepared, tmp_path):
    record = write_verdict(judge(configured(prepared[1])), tmp_path)
    assert record == json.loads((tmp_path / "verdict.json").read_text())
    assert [point["name"] for point in record["points"]] == ["base", "adapted", "control", "average 0.5"]
    assert [claim["kind"] for claim in record["claims"]] == ["goal", "control", "retention"]
    page, markdown = ((tmp_path / name).read_text() for name in ("verdict.html", "verdict.md"))
    assert not re.search(r"<script|(?:src|href)=\"(?!#)|url\((?!#)", page)
    for claim in record["claims"]:
        assert f"{claim['gain']['value']:+.4f}" in page
        assert f"{claim['gain']['value']:+.4f}" in markdown


def test_items_of_a_suite_that_stand_in_the_training_shards_decide_nothing(prepared, tmp_path):
    folder, mapping = prepared
    texts = [json.loads(line)["text"].split() for line in (folder / "domain.jsonl").read_text().splitlines()]
    leaked = [" ".join(words[:20]) for words in texts if len(words) >= 20][:6]
    own = [" ".join(f"w{700 + 20 * item + place}" for place in range(20)) for item in range(6)]
    rows = [{"query": query, "choices": ["w001", "w002"], "gold": 0} for query in [*leaked, *own]]
    suites = {"run": [str(suite_file(tmp_path, "facts", rows=rows))]}
    found = judge(configured(mapping | {"verdict": {"goals": ["facts"]}, "suites": suites}))
    clean, over_all = found.verdict.answers[-1], found.with_leaked.answers[-1]
    places = found.with_leaked.searched.leaked["facts"]
    assert places
    assert set(places) <= set(range(6))  # a text may have been held out
    assert (over_all.items, clean.items) == (12, 12 - len(places))
    assert found.verdict.answers[:-1] == found.with_leaked.answers[:-1]


@pytest.mark.e2e
def test_the_script_takes_plain_words_and_names_every_mistake(prepared):
    folder, mapping = prepared
    words = [f"--config-dir={write_experiment(folder, mapping)}", "experiment=tiny", f"out={folder / 'said'}"]
    done = launch("python", 1, "verdict.py", *words, "most_loss=0.5")
    assert json.loads((folder / "said" / "verdict.json").read_text())["verdict"] in done.stdout
    wrong = launch("python", 1, "verdict.py", *words, "control=none", "+verdict.margins.nobody=0.1", check=False)
    assert wrong.returncode == 2
    assert [line.split(":")[1].strip() for line in wrong.stderr.splitlines()] == ["verdict.control", "verdict.margins"]
