"""The first checkpoint that regressed is found, by looking at all and by bisection."""

import json
import math

import numpy as np
import pytest

from cpt_dist.config import CptConfig
from cpt_dist.errors import UserError
from cpt_dist.evaluation.bits_per_byte import DocumentScores
from cpt_dist.evaluation.documents import EvaluationText
from cpt_dist.evaluation.evaluate import HeldOutSet, Settings
from cpt_dist.evaluation.trajectory import all_of, bisected, measured
from cpt_dist.validation import validate
from tests.helpers import tiny_run

SETTINGS = Settings(window_tokens=32, max_tokens=4000, batch_tokens=128, num_resamples=400, confidence=0.95, seed=0)
STEPS = list(range(10, 170, 10))


class Planted:
    """Checkpoints that gain on `law` throughout and lose 0.1 bits per byte of `web` from step `broken` on."""

    def __init__(self, broken):
        generator = np.random.default_rng(1)
        self.broken, self.visited = broken, []
        self.bytes = generator.integers(200, 400, 60)
        self.noise = generator.normal(0, 0.02, 60)
        texts = [EvaluationText(str(n), "x" * int(size)) for n, size in enumerate(self.bytes)]
        self.sets = [HeldOutSet("law", "domain", texts, 60), HeldOutSet("web", "replay", texts, 60)]
        self.config = CptConfig()
        self.base = {"law": self.scores(0.0), "web": self.scores(0.0)}

    def scores(self, change):
        return DocumentScores(
            self.bytes * math.log(2) * (1 + change + self.noise * (change != 0)), self.bytes, self.bytes
        )

    def visit(self, step):
        self.visited.append(step)
        scores = {"law": self.scores(-0.2), "web": self.scores(0.1 if step >= self.broken else 0.001)}
        return measured(step, self.sets, self.base, scores, self.config, SETTINGS)


@pytest.mark.parametrize("broken", [10, 20, 90, 160])
def test_a_planted_regression_is_found_by_bisection_in_the_logarithm_of_the_checkpoints(broken):
    planted = Planted(broken)
    visits, first = bisected(STEPS, planted.visit)
    assert first == broken
    assert len(planted.visited) <= 1 + math.log2(len(STEPS))
    assert [one.step for one in visits] == sorted(planted.visited)


@pytest.mark.parametrize("broken", [10, 90])
def test_looking_at_all_finds_the_same(broken):
    visits, first = all_of(STEPS, Planted(broken).visit)
    assert (first, len(visits)) == (broken, len(STEPS))
    assert {one.step for one in visits if one.regressed == ["web"]} == {step for step in STEPS if step >= broken}


def test_a_run_that_never_regressed_takes_one_look():
    planted = Planted(10**6)
    assert bisected(STEPS, planted.visit)[1] is None
    assert planted.visited == [160]


def test_a_gain_beside_the_loss_does_not_hide_it():
    visit = Planted(10).visit(10)
    assert visit.regressed == ["web"]
    assert visit.point.gain.low > 0.1
    assert visit.point.forgetting.low > 0.05


@pytest.mark.parametrize(
    ("what", "checkpoints", "problem"),
    [("suites", "all", "only their held-out text"), ("held_out", "half", "'half' is unknown")],
)
def test_checkpoints_are_named_and_stand_alone(what, checkpoints, problem):
    config = CptConfig(run_dir="run")
    config.evaluate.what, config.evaluate.checkpoints = what, checkpoints
    with pytest.raises(UserError) as caught:
        validate(config)
    assert [one for one in caught.value.problems if problem in one and one.startswith("evaluate.checkpoints: ")]


@pytest.mark.e2e
def test_the_last_checkpoint_has_the_numbers_of_the_consolidated_model(tmp_path):
    mapping = tiny_run.build(tmp_path)
    mapping["checkpoint"] = {"every_steps": 10, "keep_last": 0}
    mapping["evaluation"] |= {"max_tokens": "2k"}
    words = [f"--config-dir={tiny_run.write_experiment(tmp_path, mapping)}", "experiment=tiny"]
    for script in ("train.py", "consolidate.py", "evaluate.py"):
        tiny_run.launch("python", 1, script, *words)
    done = tiny_run.launch("python", 1, "evaluate.py", f"run_dir={tmp_path / 'run'}", "checkpoints=all")
    assert "2 of 2 checkpoints measured" in done.stdout
    report, found = (json.loads((tmp_path / "run" / name).read_text()) for name in ("report.json", "trajectory.json"))
    assert [visit["step"] for visit in found["visits"]] == [10, 20]
    for role, name in (("domain", "gain"), ("replay", "forgetting")):
        values = [visit[name]["value"] for visit in found["visits"]]
        assert values[1] == pytest.approx(report["macro"][role][name]["value"], abs=1e-6)
        assert abs(values[0] - values[1]) > 1e-3
    tiny_run.launch("python", 1, "verdict.py", f"run_dir={tmp_path / 'run'}")
    taken_in = json.loads((tmp_path / "run" / "verdict.json").read_text())["trajectory"]["measured"]
    assert taken_in["visits"] == found["visits"]
