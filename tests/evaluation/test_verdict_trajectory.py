"""The trajectory in a verdict: taken in where it fits, else left out with the reason and the command."""

import shlex
from dataclasses import replace

import pytest

from cpt_dist.config import CptConfig
from cpt_dist.evaluation.claims import decide
from cpt_dist.evaluation.run_log import RunLog
from cpt_dist.evaluation.trajectory import Trajectory, all_of
from cpt_dist.evaluation.trajectory_report import write_trajectory
from cpt_dist.evaluation.verdict import Judgement
from cpt_dist.evaluation.verdict_report import write_verdict
from cpt_dist.evaluation.verdict_trajectory import pareto_steps, trajectory_part
from cpt_dist.model.folder import model_fingerprint
from tests.evaluation.test_trajectory import SETTINGS, STEPS, Planted


@pytest.fixture
def case(tmp_path):
    """A configuration and a verdict on the last of four checkpoints, of which those from step 30 on have regressed."""
    base = tmp_path / "base"
    base.mkdir()
    (base / "tokenizer.json").write_text("{}")
    config = CptConfig(run_dir=str(tmp_path / "run"))
    config.evaluate = replace(config.evaluate, base=str(base), out=str(tmp_path / "run"))
    config.model.path = str(base)
    visits, first = all_of(STEPS[:4], Planted(30).visit)
    found = Trajectory("all", config.run_dir, model_fingerprint(base), SETTINGS, STEPS[:4], visits, first)
    judgement = Judgement({"base": str(base), "adapted": "x"}, True, SETTINGS, decide(visits[-1].answers), [])
    return config, judgement, found


def test_a_measured_trajectory_is_in_the_report_with_its_picture_and_the_first_that_regressed(case, tmp_path):
    config, judgement, found = case
    visits = write_trajectory(found, config.evaluate.out)["visits"]
    record = write_verdict(judgement, tmp_path, None, trajectory_part(config, judgement))
    assert record["trajectory"]["measured"]["first_regressed"] == 30
    assert any("step 30 is the first that regressed, on web" in line for line in record["notes"])
    page, markdown = ((tmp_path / name).read_text() for name in ("verdict.html", "verdict.md"))
    assert "Gained and forgotten over the checkpoints" in page
    assert page.count("<svg") == 1
    for visit in visits:
        assert f"{visit['forgetting']['value']:+.4f}" in page
        assert f"| {visit['step']} | {visit['gain']['value']:+.4f}" in markdown


def test_without_a_trajectory_the_report_says_so_with_the_command(case, tmp_path):
    config, judgement, _ = case
    record = write_verdict(judgement, tmp_path, None, trajectory_part(config, judgement))
    command = f"python launch/evaluate.py run_dir={config.run_dir} checkpoints=all"
    assert record["trajectory"] == {
        "measured": None,
        "not_measured": "the checkpoints of the run have not been measured",
        "command": command,
    }
    for name in ("verdict.html", "verdict.md"):
        assert command in (tmp_path / name).read_text()


def test_a_trajectory_that_was_measured_otherwise_is_left_out_and_the_command_sets_what_differs(case):
    config, judgement, found = case
    other = replace(SETTINGS, max_tokens=9)
    write_trajectory(replace(found, base_files="0", settings=other), config.evaluate.out)
    visits, _ = all_of(STEPS[:1], planted_with(most_loss=0.5).visit)
    config.verdict = replace(config.verdict, most_loss=0.5, margins={"web": 0.5})
    part = trajectory_part(config, replace(judgement, verdict=decide(visits[0].answers)))
    assert part["measured"] is None
    assert part["not_measured"].endswith("other base model, settings, sources or margins")
    assert shlex.split(part["command"])[4:] == [
        f"model.path={judgement.models['base']}",
        "evaluation.max_tokens=4000",
        "verdict.least_gain=0",
        "verdict.most_loss=0.5",
        "verdict.margins={web:0.5}",
    ]


def planted_with(**declared):
    planted = Planted(30)
    planted.config.verdict = replace(planted.config.verdict, **declared)
    return planted


@pytest.mark.parametrize("text", ["{", "[]", '{"format": "cpt_dist.trajectory/1"}'])
def test_a_file_that_is_no_trajectory_is_named(case, text):
    config, judgement, found = case
    write_trajectory(found, config.evaluate.out)
    path = f"{config.evaluate.out}/trajectory.json"
    with open(path, "w") as handle:
        handle.write(text)
    part = trajectory_part(config, judgement)
    assert part["measured"] is None
    assert path in part["not_measured"]


def test_checkpoints_made_since_are_named(case):
    config, judgement, found = case
    write_trajectory(found, config.evaluate.out)
    part = trajectory_part(config, judgement, RunLog(checkpoints=[30, 40, 50]))
    assert "(50)" in part["measured"]["note"]


def test_a_checkpoint_that_another_beats_in_both_is_not_on_the_front():
    def visit(step, gain, forgetting):
        return {"step": step, "gain": {"value": gain}, "forgetting": {"value": forgetting}}

    visits = [visit(1, 0.1, 0.0), visit(2, 0.3, 0.1), visit(3, 0.2, 0.2), {"step": 4, "gain": None, "forgetting": None}]
    assert pareto_steps(visits) == [1, 2]


def test_a_trajectory_of_another_run_is_left_out_and_a_moved_run_is_the_same(case):
    config, judgement, found = case
    write_trajectory(replace(found, run_dir="elsewhere", run_began=5.0), config.evaluate.out)
    same, other = (RunLog(starts=[{"time": time}]) for time in (5.0, 6.0))
    assert trajectory_part(config, judgement, same)["measured"] is not None
    part = trajectory_part(config, judgement, other)
    assert part["measured"] is None
    assert part["not_measured"].endswith(f"is of another run than the one in '{config.run_dir}'")
