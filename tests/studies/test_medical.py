"""The medical study as commands: each composes, none runs twice, and the report says what the record says."""

import contextlib
import runpy
import shlex
import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from cpt_dist.errors import UserError
from studies import medical, report
from studies.steps import Steps, words_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """Step -> the words after the launch script's name, and that name, of every step that launches a program."""
    found = {}
    study = medical.Study(medical.WHOLE, tmp_path_factory.mktemp("study"), Path("packages"), 2)
    study.steps.once = lambda *_: None
    study.steps.launch = lambda name, script, *words, processes=0: found.update({name: (script, words)})
    study.run()
    return found


def test_every_command_of_the_study_composes(commands, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert len(commands) == 1 + 2 * 5 + 3 + 1 + 3
    for script, words in commands.values():
        monkeypatch.setattr(sys, "argv", [f"launch/{script}", *words, "--cfg", "job"])
        GlobalHydra.instance().clear()
        with contextlib.suppress(SystemExit):
            runpy.run_path(f"launch/{script}", run_name="__main__")
        output = capsys.readouterr()
        assert output.out.startswith("run_dir:"), (script, output.err)


def test_arms_read_as_many_tokens_from_one_base_under_one_schedule(commands):
    settings = {}
    for arm in medical.ARMS:
        words = dict(word.split("=", 1) for word in commands[f"train-{arm}"][1])
        settings[arm] = {key: value for key, value in words.items() if key not in ("run_dir", "stages.0.mixture")}
    assert all(one == settings["control"] for one in settings.values())
    mixtures = [shlex.join(commands[f"train-{arm}"][1]) for arm in ("replay_25", "control")]
    assert "go:0.75,wordnet:0.125,sotu:0.125" in mixtures[0]
    assert "go:0.0,wordnet:0.5,sotu:0.5" in mixtures[1]


def test_a_step_runs_once_and_another_command_for_it_is_refused(tmp_path):
    done = []
    for _ in range(2):
        Steps(tmp_path).once("first", "say 1", lambda: done.append(1))
    assert done == [1]
    with pytest.raises(UserError, match=r"step 'first' in .* was 'say 1' and is 'say 2' now"):
        Steps(tmp_path).once("first", "say 2", lambda: done.append(2))
    with pytest.raises(ZeroDivisionError):
        Steps(tmp_path).once("second", "fail", lambda: 1 / 0)
    Steps(tmp_path).once("second", "fail", lambda: done.append(3))
    assert done == [1, 3]


def test_settings_are_words_as_hydra_reads_them():
    assert words_of({"a": 1e-3, "b": [1, "x"], "c": {"d": 0.5, "e": True}}) == [
        "a=0.001",
        "b=[1,x]",
        "c={d:0.5,e:true}",
    ]


def test_a_report_gives_claims_suites_and_probe_as_they_are_on_record():
    gain = {"value": 0.25, "low": 0.125, "high": 0.375}
    claim = dict.fromkeys(report.CLAIM_KEYS) | {"claim": "go gains more than 0.05", "status": "shown", "gain": gain}
    claim |= {"p_above": 0.001, "p_below": 1.0, "items": 77, "detectable": 0.01}
    training = {
        "parameters": 5,
        "steps": 6,
        "tokens": 7000,
        "tokens_per_second": 8.0,
        "first_loss": 9.0,
        "last_loss": 1.5,
    }
    suite = {"suite": "go_mc", "status": "not run"}
    source = {"source": "go", "documents": 3, "outcome": "improved"} | dict.fromkeys(
        ("base", "adapted", "difference"), gain
    )
    arm = {
        "arm": "replay_10",
        "replay": 0.1,
        "training": training,
        "verdict": "undecided",
        "sentence": "Undecided: 1 of 2 claims are shown, none is refuted.",
        "reasons": ["retention of sotu is undecided"],
        "notes": [],
        "claims": [claim, claim | {"claim": "cloze loses", "gain": None, "not_run": "there is no model"}],
        "sources": [source],
        "suites": [suite],
    }
    seed = {"seed": 0, "score": {"value": 0.5}}
    probe = {
        "probe": "aspect",
        "sentence": "improved",
        "seeds": [0],
        "items": 4,
        "chance": 0.3,
        "majority": 0.4,
        "notes": [],
    }
    probe["arms"] = [{"arm": "base", "before": {"value": 0.3}, "seeds": [seed], "mean": 0.5}]
    probe["comparisons"] = [
        {"against": "base", "outcome": "improved", "gain": gain, "p_value": 0.01, "seed_share_of_variance": 0.2}
    ]
    control = {"arm": "control", "replay": 1.0, "training": training}
    steps = [{"step": "train-base", "seconds": 120.0}]
    size = {"items": 4, "examples": 2}
    record = {"base": training, "arms": [arm, control], "probe": probe, "steps": steps, "processes": 2, "size": size}
    text = report.render(record | {"main": "replay_10"})
    for said in (
        "**undecided**. Undecided: 1 of 2",
        "go gains more than 0.05 | shown | +0.2500 [+0.1250, +0.3750] | 0.0010 | 1.0000 | 77",
        "cloze loses | not run: there is no model",
        "- retention of sotu is undecided",
        "| go_mc | replay_10 |  |  |  |  |  | not run |",
        "base | improved | +0.2500",
        "1 steps took 2.0 minutes",
    ):
        assert said in text
