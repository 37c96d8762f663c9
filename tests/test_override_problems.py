"""A wrong word on the command line is one line with the value and the fix; --help is a screenful of its program."""

import runpy
import sys
from pathlib import Path

import pytest

from cpt_dist.cli import composed, user_mistakes
from cpt_dist.launcher_help import explanation
from cpt_dist.override_problems import check_words, config_groups, flags_first, with_missing_run

LAUNCH = Path(__file__).resolve().parents[1] / "launch"
PROGRAMS = sorted(path.name for path in LAUNCH.glob("*.py"))


def lines_said(words, capsys):
    with pytest.raises(SystemExit) as end, user_mistakes():
        composed(["experiment=demo", *words])
    assert end.value.code == 2
    return capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    ("word", "line"),
    [
        (
            "engine.micro_batch=two",
            "engine.micro_batch: 'two' is no whole number; write one, such as engine.micro_batch=8",
        ),
        ("optimizer.beta1=b", "optimizer.beta1: 'b' is no number; write one, such as optimizer.beta1=0.1"),
        ("kernels.strict=7up", "kernels.strict: '7up' is no truth value; write one, such as kernels.strict=true"),
        (
            "data.sources.sotu.raw=a.jsonl",
            "data.sources.sotu.raw: 'a.jsonl' is a single value where a list is wanted; "
            "write data.sources.sotu.raw=[a.jsonl]",
        ),
        (
            "engine=zerro3",
            "engine=zerro3: no such engine; did you mean 'zero3'? (files of your own: --config-dir=FOLDER)",
        ),
        ("seed", "'seed' is not an override; write it as key=value"),
        ("--seed=1", "there is no flag '--seed'; values have no dashes: seed=1"),
        ("--verbose", "there is no flag '--verbose'; --help tells what there is"),
        ("--config-dir=nowhere", "--config-dir: there is no folder 'nowhere'; correct the path"),
        ("evaluate.what=all", "evaluate.what: 'all' is unknown; it is one of held_out, suites, long_context"),
    ],
)
def test_a_wrong_word_is_one_line_with_the_value_and_the_fix(word, line, capsys):
    assert lines_said([word], capsys) == [f"error: {line}"]


def test_a_mapping_in_the_place_of_a_file_names_the_files_and_the_way_to_set_values(capsys):
    (line,) = lines_said(["kernels={rope: triton, strict: true}"], capsys)
    assert "chooses a file (auto, model, triton); set values one by one: kernels.…=…" in line


def test_a_word_that_can_not_be_read_is_named(capsys):
    (line,) = lines_said(["suites.run=[{a"], capsys)
    assert line.startswith("error: suites.run=[{a: ")
    assert line.endswith("close every bracket and quote, and put the word into '…' for the shell")


def test_a_known_word_is_listed_once(capsys):
    (line,) = lines_said(["qqqq=1"], capsys)
    known = line.split("known: ")[1].split(", ")
    assert len(known) > 30
    assert len(known) == len(set(known))


def test_files_of_the_users_own_folder_are_known(tmp_path, capsys):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "small.yaml").write_text("seed: 1")
    assert "small" in config_groups([str(tmp_path)])["experiment"]
    (line,) = lines_said([f"--config-dir={tmp_path}", "experiment=smal"], capsys)
    assert line == "error: experiment=smal: no such experiment; did you mean 'small'?"
    check_words(["-cd", str(tmp_path), "experiment=small"])


def test_a_run_that_was_never_started_is_the_first_line_where_values_are_missing(tmp_path):
    missing = ["model.path is missing; give it: model.path=…"]
    first, *rest = with_missing_run(missing, [f"run_dir={tmp_path}"])
    assert first.startswith(f"run_dir: '{tmp_path}' has no config.yaml, so no run was started there;")
    assert rest == missing
    assert with_missing_run(missing, [f"run_dir={tmp_path}", "experiment=demo"]) == missing
    assert with_missing_run(["seed: 1"], [f"run_dir={tmp_path}"]) == ["seed: 1"]
    (tmp_path / "config.yaml").touch()
    assert with_missing_run(missing, [f"run_dir={tmp_path}"]) == missing


def test_flags_may_stand_behind_overrides():
    assert flags_first(["a=1", "--cfg", "job", "b=2", "--resolve"]) == ["--cfg", "job", "--resolve", "a=1", "b=2"]


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_is_a_screenful_about_the_program(program, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(LAUNCH / program), "--help"])
    runpy.run_path(str(LAUNCH / program), run_name="__main__")
    text = capsys.readouterr().out
    assert text.startswith((LAUNCH / program).read_text().split('"""')[1].strip())
    assert "wsd" in text
    assert f"python launch/{program} … --cfg job" in text
    assert 12 < text.count("\n") < 75
    assert max(map(len, text.splitlines())) <= 120


def test_help_explains_the_words_of_the_program():
    assert explanation("evaluate.adapted") == "Model after adaptation"
    assert explanation("model.path").startswith("Folder of a Hugging Face")
