"""Two ranks of which one is slow."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import tiny_run

pytestmark = pytest.mark.distributed
SLOW = """\
import os, time

if os.environ.get("RANK") == "1":
    from cpt_dist.data.row_window import RowWindow

    batch = RowWindow.batch

    def slowly(*arguments, **options):
        time.sleep(0.15)
        return batch(*arguments, **options)

    RowWindow.batch = slowly
"""


def test_the_metrics_name_the_rank_that_waits_for_its_data(tmp_path):
    config = tiny_run.build(tmp_path)
    config["stages"][0]["tokens"] = "1024"
    configs = tiny_run.write_experiment(tmp_path, config)
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "sitecustomize.py").write_text(SLOW)
    path = f"{tmp_path / 'slow'}:{os.environ.get('PYTHONPATH', '')}:{tiny_run.ROOT}:{tiny_run.ROOT / 'kernels'}"
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    words = [str(Path(sys.executable).parent / "torchrun"), "--standalone", "--nproc-per-node=2"]
    words += [str(tiny_run.ROOT / "launch" / "train.py"), f"--config-dir={configs}", "experiment=tiny"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=480, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    stragglers = [step["straggler"] for step in tiny_run.read_metrics(config["run_dir"])]
    assert [(one["rank"], one["phase"]) for one in stragglers[1:]] == [(1, "data")] * 3
    assert all(one["seconds"] > one["median_seconds"] + 0.1 for one in stragglers)
