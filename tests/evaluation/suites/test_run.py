"""launch/evaluate.py on suites, facts and prompts: what it writes, and what it refuses."""

import json
import re
from dataclasses import replace

import pytest

from cpt_dist.cli import _lengthened
from cpt_dist.config import CptConfig
from cpt_dist.errors import UserError
from cpt_dist.evaluation.suites.inputs import check_suite_inputs, scores_held_out
from cpt_dist.evaluation.suites.report import write_suites_report
from cpt_dist.evaluation.suites.run import evaluate_suites
from tests.evaluation.suites.small import model_folder, questions, suite_file, write_rows
from tests.helpers.tiny_run import launch


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two models, three suite files, facts and prompts."""
    folder = tmp_path_factory.mktemp("run")
    model_folder(folder / "base")
    model_folder(folder / "adapted", seed=3)
    suite_file(folder, "words", rows=questions(20))
    suite_file(folder, "gaps", rows=[{"query": "x of", "a": "y"}] * 7, kind="cloze", choices=None, answer="a")
    probe = {"form": "cloze", "direction": "forward", "prompt": "The sign is", "answer": "ab"}
    facts = [{"id": f"f{n}", "kind": ("trained", "control")[n % 2], "probes": [probe]} for n in range(14)]
    write_rows(folder / "facts.jsonl", facts)
    write_rows(folder / "prompts.jsonl", [{"prompt": "<script>alert(1)</script> | a"}])
    (folder / "tasks").mkdir()
    (folder / "tasks" / "gone.yaml").write_text(
        "task: gone\ndataset_path: json\ndataset_kwargs: {data_files: {test: /nowhere.jsonl}}\ntest_split: test\n"
        "doc_to_text: a\ndoc_to_target: b\noutput_type: loglikelihood\n"
    )
    return folder


@pytest.fixture
def config(folder):
    config = CptConfig(run_dir=str(folder))
    config.evaluate = replace(
        config.evaluate,
        what="suites",
        base=str(folder / "base"),
        adapted=str(folder / "adapted"),
        out=str(folder / "out"),
    )
    config.evaluation = replace(config.evaluation, bootstrap=200)
    config.suites = replace(
        config.suites,
        run=[str(folder / "words.yaml"), "gone", str(folder / "gaps.yaml")],
        task_folders=[str(folder / "tasks")],
        probes=[str(folder / "facts.jsonl")],
        prompts=str(folder / "prompts.jsonl"),
        max_new_tokens=4,
        num_samples=1,
    )
    return config


def test_the_three_files_say_the_same_and_the_page_fetches_nothing(config, folder):
    record = write_suites_report(evaluate_suites(config), folder / "out")
    written = json.loads((folder / "out" / "suites.json").read_text())
    assert written == json.loads(json.dumps(record))
    page, markdown = ((folder / "out" / name).read_text() for name in ("suites.html", "suites.md"))
    words, gone, gaps = written["suites"]
    assert (gone["status"], gone["outcome"], "base" in gone) == ("not run", "not run", False)
    assert "not run: gone" in written["sentence"]
    for suite in (words, gaps):
        for value in (suite["base"]["value"], suite["adapted"]["value"]):
            assert f"{value:.4f}" in page
            assert f"{value:.4f}" in markdown
    assert "<script" not in page
    assert "<svg" in page
    assert not re.search(r'(?:src|href)="(?!#)', page)
    assert written["contamination"] == {"sources": [], "missing": [], "documents": 0, "tokens": 0, "found": []}
    write_suites_report(evaluate_suites(config), folder / "again")
    assert (folder / "again" / "suites.html").read_text() == page


def test_a_model_compared_with_itself_shows_no_difference(config, folder):
    config.evaluate = replace(config.evaluate, adapted=str(folder / "base"))
    found = evaluate_suites(config)
    run = [result for result in found.suites if result.comparison]
    assert [result.comparison.gain.value for result in run] == [0.0, 0.0]
    assert {result.outcome for result in run} == {"undecided"}
    assert all(base == adapted for _, base, adapted in found.continuations)


def test_suites_alone_need_no_run_and_no_shards():
    config = CptConfig(run_dir="")
    config.model.path = config.data.shards = config.data.tokenizer = ""
    config.evaluate = replace(config.evaluate, base="", adapted="/model", out="")
    config.suites = replace(config.suites, run=["mmlu"])
    assert not scores_held_out(config)
    with pytest.raises(UserError) as caught:
        check_suite_inputs(config)
    assert caught.value.problems == [
        f"evaluate.{name} is missing; give it: evaluate.{name}=…" for name in ("base", "adapted", "out")
    ]


def test_nothing_to_ask_is_refused(config):
    config.suites = CptConfig().suites
    with pytest.raises(UserError, match="suites: nothing is named"):
        check_suite_inputs(config)


def test_model_is_a_folder_or_a_choice_of_the_group():
    short = {"model": "evaluate.adapted"}
    assert _lengthened("model=runs/x/model", short) == "evaluate.adapted=runs/x/model"
    assert _lengthened("model=smollm2", short) == "model=smollm2"


@pytest.mark.e2e
def test_the_script_takes_folders_and_refuses_a_wrong_suite_with_exit_code_2(folder):
    words = [f"base={folder / 'base'}", f"model={folder / 'adapted'}", f"out={folder / 'cli'}"]
    wrong = suite_file(folder, "wrong", kind="choice")
    done = launch("python", 1, "evaluate.py", *words, f"suites=[{wrong}]", check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"error: suite '{wrong}': kind: 'choice' is unknown; known: cloze, generation, multiple_choice"
    ]
    done = launch("python", 1, "evaluate.py", *words, f"suites=[{folder / 'words.yaml'}]")
    assert "undecided" in done.stdout
    assert json.loads((folder / "cli" / "suites.json").read_text())["suites"][0]["items"] == 20
