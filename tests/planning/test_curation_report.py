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
from cpt_dist.planning.curation_page import report, shown_scores
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


def test_a_report_needs_a_curated_source(tmp_path):
    with pytest.raises(UserError, match="no source is curated"):
        report(curation_config(tmp_path), {})
