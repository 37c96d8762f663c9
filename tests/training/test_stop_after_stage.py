"""One job of several stages against a job for each."""

import pytest

from tests.helpers import tiny_run

pytestmark = pytest.mark.e2e


def test_a_job_for_each_stage_makes_the_steps_of_one_job_for_all(tmp_path):
    config = tiny_run.build(tmp_path)
    stage = config["stages"][0] | {"tokens": "1024"}
    config["stages"] = [stage | {"name": "first"}, stage | {"name": "second"}]
    configs = tiny_run.write_experiment(tmp_path, config)

    def losses(run_dir, *starts):
        for words in starts:
            run = f"run_dir={tmp_path / run_dir}"
            tiny_run.launch("python", 1, "train.py", f"--config-dir={configs}", "experiment=tiny", run, *words)
        return [record["loss"] for record in tiny_run.read_metrics(tmp_path / run_dir)]

    split = losses("split", ["stop_after_stage=first"], ["stop_after_stage=second"])
    assert split == pytest.approx(losses("whole", []), rel=1e-6)
    assert [record["step"] for record in tiny_run.read_metrics(tmp_path / "split", "checkpoint")] == [4, 8]
