"""The three files of the report say the same, show names as text, and need nothing from outside."""

import html
import json
import math
import re
import xml.etree.ElementTree as ElementTree

import pytest
from markupsafe import escape

from cpt_dist.evaluation.evaluate import Evaluation, SourceResult, compare, macro_averages
from cpt_dist.evaluation.report import notes, sentence, write_report
from cpt_dist.evaluation.run_log import RunLog
from tests.evaluation.test_evaluate import SETTINGS, planted
from tests.evaluation.test_run_log import step

EVIL = "<script>alert('1')</script> | $x_1$ & *y*"


def evaluation_of(*sources, not_run=()):
    compared = [compare(*planted(*source), SETTINGS) for source in sources]
    results = [result for result, _ in compared]
    results += [SourceResult(name, "domain", "not run", "it holds out no document") for name in not_run]
    macro = macro_averages(results, {result.source: rows for result, rows in compared}, 0.95)
    return Evaluation("models/base", "runs/x/model", True, SETTINGS, results, macro)


@pytest.fixture(scope="module")
def evaluation():
    return evaluation_of(
        ("law", "domain", 40, -0.2), (EVIL, "replay", 30, 0.1), ("tiny", "replay", 1, 0.0), not_run=["physics"]
    )


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    tokens = {"planned_tokens": {"law": 700.5, EVIL: 300.0}, "realised_tokens": {"law": 704, EVIL: 296}}
    records = [{"kind": "run", "step": 0, "engine": "fsdp", "world_size": 2, "model": "models/base"}]
    records += [step(n, lr=1e-5, stage="main", loss_by_source={"law": 2.0, EVIL: 3.0}, **tokens) for n in range(1, 9)]
    records += [{"kind": "resume", "step": 8, "engine": "zero", "zero_stage": 3, "world_size": 1}]
    for number in (8, 9):
        records += [{"kind": "evaluation", "step": number, "sources": {EVIL: {"bits_per_byte": 1.0}}}]
    path.write_text("\n".join(map(json.dumps, records)))
    return RunLog.read(path)


@pytest.fixture(scope="module")
def files(evaluation, log, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "new"
    write_report(evaluation, folder, log)
    return {path.suffix: path.read_text() for path in folder.iterdir()}


def test_the_numbers_of_all_three_files_agree(files):
    record = json.loads(files[".json"])
    page = re.sub(r"<svg.*?</svg>", "", files[".html"], flags=re.DOTALL)
    expected = []
    for source in record["sources"][:3]:
        for name, form in (("base", "{:.4f}"), ("adapted", "{:.4f}"), ("difference", "{:+.4f}")):
            expected += [form.format(value) for value in source[name].values() if value is not None]
        expected.append(f"{source['bytes']:,}")
    for role, name in (("domain", "gain"), ("replay", "forgetting")):
        expected.append(f"{record['macro'][role][name]['value']:+.4f}")
    run = record["run"]
    expected += [f"{run['tokens']:,}", "704", "296", f"{run['last_loss']:.4g}", record["settings"]["num_resamples"]]
    for value in map(str, expected):
        assert value in files[".md"]
        assert value in page


def test_a_change_shown_is_the_difference_of_what_the_json_holds(files, evaluation):
    for source, result in zip(json.loads(files[".json"])["sources"], evaluation.sources, strict=True):
        if source["status"] == "measured":
            assert source["difference"]["value"] == pytest.approx(source["adapted"]["value"] - source["base"]["value"])
            assert source["base"]["value"] == result.base.value


def test_the_page_is_one_file_without_scripts_or_anything_fetched(files):
    page = files[".html"]
    assert "<script" not in page
    assert not re.search(r"<(link|img|iframe|object|embed|image)\b|@import|\bon\w+=", page)
    addresses = re.findall(r"""(?:href|src)=["']([^"']*)|url\(([^)]*)\)""", page)
    assert all(address.startswith("#") for pair in addresses for address in pair if address)
    assert page.count("<svg") == 6


def test_every_figure_is_well_formed_and_its_references_resolve(files):
    page = files[".html"]
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    for name in re.findall(r'(?:href="#|url\(#)([^")]*)', page):
        assert name in ids
    for svg in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        assert ElementTree.fromstring(svg).tag.endswith("svg")


def test_names_are_shown_as_the_text_they_are(files):
    page, markdown = files[".html"], files[".md"]
    assert page.count(str(escape(EVIL))) >= 3
    figures = re.findall(r"<svg.*?</svg>", re.sub(r"<!--.*?-->", "", page, flags=re.DOTALL), flags=re.DOTALL)
    assert EVIL in html.unescape(figures[0])
    assert "<script" not in markdown
    rows = [line for line in markdown.splitlines() if line.startswith("| &lt;script&gt;")]
    assert all(len(re.findall(r"(?<!\\)\|", row)) in (9, 4) for row in rows)
    assert rows


def test_what_was_not_run_is_named_and_has_no_number(files):
    source = json.loads(files[".json"])["sources"][3]
    assert source == {
        "source": "physics",
        "role": "domain",
        "status": "not run",
        "reason": "it holds out no document",
    }
    assert "| physics | domain | not run | not run | not run | not run | | |" in files[".md"]
    assert "not run: physics" in files[".html"]


def test_the_same_evaluation_gives_the_same_bytes(evaluation, log, files, tmp_path):
    write_report(evaluation, tmp_path, log)
    assert {path.suffix: path.read_text() for path in tmp_path.iterdir()} == files


def test_the_report_works_without_a_run(evaluation, tmp_path):
    record = write_report(evaluation, tmp_path)
    assert record["run"] is None
    assert "there is no metrics.jsonl" in (tmp_path / "report.md").read_text()
    assert "there is no metrics.jsonl" in (tmp_path / "report.html").read_text()


def test_a_loss_that_was_no_number_leaves_valid_json(evaluation, tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps(step(1, loss=math.nan, lr=1e-5)))
    write_report(evaluation, tmp_path, RunLog.read(tmp_path / "metrics.jsonl"))
    text = (tmp_path / "report.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["run"]["last_loss"] is None


def test_the_sentence_counts_outcomes_and_names_what_was_not_run(evaluation):
    assert sentence(evaluation.sources) == (
        "In bits per byte of held-out text, of 1 domain source 1 improved (law); "
        f"of 2 general (replay) sources 1 worse ({EVIL}) and 1 undecided (tiny); not run: physics."
    )
    assert "no general (replay) source was measured" in sentence(evaluation.sources[:1])


def test_the_notes_say_what_would_decide(evaluation):
    lines = "\n".join(notes(evaluation, None))
    assert "tiny: undecided, because documents that weigh as much as 1.0 equal ones can't decide" in lines
    assert "1 of 500 held-out documents were scored; raise evaluation.max_tokens" in lines
    assert "law" not in lines


def test_the_notes_warn_of_different_tokenizers(evaluation):
    from dataclasses import replace

    assert any("different tokenizers" in line for line in notes(replace(evaluation, same_tokenizer=False), None))
