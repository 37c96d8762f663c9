"""Each recipe runs as one command, measures every arm, and decides nothing from one seed."""

import json
import subprocess
import sys

import pytest

from tests.helpers.tiny_run import ROOT

NUM_CLAIMS = {"rope": 7, "schedule": 3, "mask": 1}


@pytest.mark.e2e
@pytest.mark.parametrize("name", NUM_CLAIMS)
def test_a_recipe_runs_from_text_to_outcomes(name, tmp_path):
    words = [sys.executable, "-m", f"recipes.{name}", "--quick", "--seeds", "1", "--out", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=560)
    assert done.returncode == 0, done.stderr[-4000:]
    record = json.loads((tmp_path / f"{name}.json").read_text())
    assert [claim["outcome"] for claim in record["claims"]] == ["undecided"] * NUM_CLAIMS[name]
    assert all(abs(claim["mean"]) < 10 for claim in record["claims"])
    assert record["claims"][0]["text"][:20] in done.stdout
