"""Output of ranks and outcome of a start, through the entry of every launch script."""

import os
import subprocess
import sys

from tests.helpers.tiny_run import ROOT

PROGRAM = """
import os, sys
from cpt_dist.cli import run

def main(config):
    print("said by Python")
    os.write(2, b"said by a library\\n")

run(main)
"""


def test_a_rank_writes_into_its_own_file_and_the_outcome_is_left(tmp_path):
    environment = os.environ | {"CPT_START_DIR": str(tmp_path), "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    words = [sys.executable, "-c", PROGRAM, "model.path=x", "data.shards=y", "run_dir=z"]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
    said = (tmp_path / "rank-00000.out").read_text()
    assert "said by Python" in said
    assert "said by a library" in said
    assert (tmp_path / "outcome").read_text() == "0 finished\n"


def test_a_mistake_is_an_outcome_too(tmp_path):
    environment = os.environ | {"CPT_START_DIR": str(tmp_path), "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    words = [sys.executable, "-c", PROGRAM, "seed=-1", "model.path=x", "data.shards=y", "run_dir=z"]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert (tmp_path / "outcome").read_text() == "2 error\n"
    assert (tmp_path / "rank-00000.out").read_text().startswith("error: seed: -1 must be at least 0")
