"""The report of a curation says what its files say: documents, bytes and tokens at each step, and why."""

import itertools
import json
import re
from collections import Counter

import pytest

from cpt_dist.config import StageConfig
from cpt_dist.corpus.curation.curate import curate
from cpt_dist.data.curated import with_curated_sources
from cpt_dist.data.prepare import prepare
from cpt_dist.data.tokenizer import DocumentTokenizer
from cpt_dist.errors import UserError
from cpt_dist.planning.curation_page import _clusters, bars, report, shown_scores, tables
from cpt_dist.planning.curation_summary import summarise
from cpt_dist.planning.curation_texts import EXCERPT, excerpts
from tests.corpus.test_curation import LAW, SOURCES, curated_rows, curation_config, dropped_rows


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """(folder, record, Markdown, page) of a curation with a threshold, an evaluation item and a planned mixture."""
    folder = tmp_path_factory.mktemp("report")
    items = folder / "items.jsonl"
    items.write_text(json.dumps({"question": " ".join(LAW[2].split()[:20])}) + "\n")
    config = curation_config(folder, held_out=0.1)
    config.run_dir = str(folder / "run")
    config.prepare.out = str(folder / "report")
    config.data.sources["law"].curation = {"quality": {"thresholds": {"words": [10, None]}}}
    config.data.curation.decontamination.files = [str(items)]
    folders = curate(config)
    prepare(*with_curated_sources(config, folders))
    stage = StageConfig(tokens="20k", seq_len=64, batch_tokens="256", mixture={"law": 0.5, "news": 0.5})
    config.stages = [stage]
    report(config, folders)
    files = [(folder / "report" / f"report.{ending}").read_text() for ending in ("json", "md", "html")]
    return folder, json.loads(files[0]), files[1], files[2]


def test_every_step_of_every_source_adds_up_to_the_tokens_of_its_texts(reported):
    folder, record, _, _ = reported
    tokenizer = DocumentTokenizer(folder / "tokenizer")

    def tokens(texts):
        return sum(map(len, tokenizer.encode_batch(texts)))

    for name, source in record["sources"].items():
        kept, dropped = curated_rows(folder, name), dropped_rows(folder, name)
        assert source["tokens"] == tokens([row["text"] for row in kept])
        steps = source["steps"]
        assert steps[0]["read"] == len(SOURCES[name])
        for before, after in itertools.pairwise(steps):
            assert before["kept"] == before["read"] - before["gone"] == after["read"]
            assert before["tokens_left"] == after["tokens_left"] + after["tokens_dropped"]
        near = [row["text"] for row in dropped if row["step"] == "near_duplicates"]
        assert next(step for step in steps if step["step"] == "near_duplicates")["tokens_dropped"] == tokens(near)
        reasons = {(one["step"], one["reason"]): one["documents"] for one in source["reasons"]}
        assert reasons == Counter((row["step"], row["reason"]) for row in dropped)


def test_overlap_contamination_and_epochs_are_those_of_the_files(reported):
    folder, record, _, _ = reported
    assert {"source": "news", "of": "law", "exact": 1, "near": 1} in record["overlap"]
    assert record["contamination"] == {"documents": {"law": 1}, "items": 1, "most": [[f"{folder}/items.jsonl:0", 1]]}
    epochs = record["epochs"]["sources"]["law"]
    assert epochs["tokens"] == record["prepared"]["law"]["tokens"]
    assert epochs["epochs"] == pytest.approx(epochs["tokens_read"] / epochs["tokens"], rel=0.05)


def test_page_and_markdown_show_samples_scores_and_thresholds_and_fetch_nothing(reported):
    _, record, markdown, page = reported
    sample = next(one for one in record["sources"]["law"]["reasons"] if one["reason"] == "near_duplicate")["samples"][0]
    assert sample["text"].split("\n")[0] in markdown
    assert sample["text"].split("\n")[0] in page
    scores = record["sources"]["law"]["scores"]
    assert scores["words"]["thresholds"] == [10, None]
    assert {"quality", "words"} <= set(shown_scores(scores))
    assert sum(scores["quality"]["kept"]) == record["sources"]["law"]["documents"]
    assert not re.search(r'(src|href)="(?!#)|@import|url\(http', page)
    assert page.count("<figure>") == 4


def test_a_duplicate_stands_beside_what_stays_from_a_little_before_the_difference(reported):
    _, record, markdown, page = reported
    reasons = {(name, one["reason"]): one for name, source in record["sources"].items() for one in source["reasons"]}
    near, exact = reasons["news", "near_duplicate"]["samples"][0], reasons["news", "duplicate"]["samples"][0]
    assert near["stays"]["source"] == exact["stays"]["source"] == "law"
    assert "changed" in near["text"]
    assert "changed" not in near["stays"]["text"]
    assert near["stays"]["text"].lstrip("…")[:80] == near["text"].lstrip("…")[:80]
    assert exact["text"] == LAW[9][:EXCERPT]
    assert exact["stays"]["text"] is None
    for shown in (near["text"], near["stays"]["text"]):
        assert shown.split("\n")[0] in markdown
        assert shown.split("\n")[0] in page
    assert record["clusters"]["largest"][0]["text"]


def test_texts_differ_at_a_word_and_not_at_a_line_end():
    same = "one two\nthree, FOUR " * 30
    first, second = excerpts(f"{same}here it ends", f"{same.replace(chr(10), ' ').lower()}there it doesn't")
    assert len(first) < EXCERPT
    assert first.endswith("here it ends")
    assert second.endswith("there it doesn't")


def test_labels_are_shown_before_the_filters_and_of_what_is_left(tmp_path):
    german = " ".join(["Das Gericht hat entschieden, dass der Vertrag nicht gültig ist."] * 3)
    english = [f"The court of number {word} has decided that the contract is not valid." for word in LAW[0].split()[:6]]
    config = curation_config(tmp_path, {"law": [*english, german], "news": english[:1]})
    config.data.curation.near_duplicates.enabled = False
    config.data.sources["law"].curation = {"quality": {"enabled": False}, "language": {"wanted": ["en"]}}
    record = summarise(config, curate(config))
    law = record["sources"]["law"]
    assert law["labels_before"]["language"] == {"de": 1, "en": 6}
    assert law["labels"]["language"] == {"en": 6}
    (table,) = [one for one in tables(record) if one.title.startswith("law: labels")]
    assert ["language", "de", "1", "14.3%", "0", "0.0%"] in table.rows


def test_a_threshold_stands_in_the_bars_where_it_lies():
    score = {"edges": [float(edge) for edge in range(41)], "kept": [0] * 20 + [8] * 20, "dropped": [0] * 40}
    assert bars({**score, "thresholds": [20, None]}) == " " * 10 + "│" + "█" * 10
    assert bars({**score, "thresholds": [None, 99]}) == " " * 10 + "█" * 10 + "│"
    assert bars({**score, "thresholds": [-5, 30]}) == "│" + " " * 10 + "█" * 5 + "│" + "█" * 5


def test_clusters_are_shown_by_the_sizes_that_there_are():
    clusters = {"clusters": 4, "duplicates": 50, "sizes": {"2": 3, "64": 1}, "largest": []}
    assert _clusters({"clusters": clusters}).rows == [["2", "3"], ["33 – 64", "1"]]


def test_a_report_needs_a_curated_source(tmp_path):
    with pytest.raises(UserError, match="no source is curated"):
        report(curation_config(tmp_path), {})
