"""A run over strata whose source grows between two starts: accounts, metrics and the ledger's answers agree."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cpt_dist.data.prepare import prepare
from cpt_dist.strata_config import StrataConfig
from tests.e2e.conftest import Tiny
from tests.helpers import tiny_run

pytestmark = pytest.mark.e2e


def test_strata_are_accounted_for_and_a_new_generation_enters_at_the_resume(tmp_path):
    tiny = Tiny(tmp_path)  # its own, since it grows
    config = tiny.config
    domain = config["data"]["sources"]["domain"] | {"strata": {"by": "length", "edges": [20, 40]}}
    nested = {"share": 0.7, "strata": {"low": 1, "middle": 1, "high": 2}}
    stage = config["stages"][0] | {"mixture": {"domain": nested, "general": 0.3}, "tokens": "2560"}
    data = config["data"] | {"sources": config["data"]["sources"] | {"domain": domain}}
    arguments = tiny.arguments(data=data, stages=[stage])
    tiny_run.launch("python", 1, "train.py", *arguments)
    (first,) = tiny_run.read_metrics(tiny.run_dir, "checkpoint")
    strata = first["accounts"]["domain"]["strata"]
    assert list(strata) == ["domain/low", "domain/middle", "domain/high"]
    for key in ("samples", "tokens", "loss_tokens", "padding"):
        assert first["accounts"]["domain"][key] == sum(view[key] for view in strata.values())
    step = tiny_run.read_metrics(tiny.run_dir)[-1]
    assert step["realised_tokens"]["domain"] == first["accounts"]["domain"]["tokens"]
    half = step["planned_tokens"]["domain"] / 2
    assert step["strata"]["domain/high"]["planned_tokens"] == pytest.approx(half)

    grow(config)
    later = stage | {"name": "later"}
    run_dir = tiny.run_dir
    tiny_run.launch("python", 1, "train.py", *tiny.arguments(f"run_dir={run_dir}", data=data, stages=[stage, later]))
    last = tiny_run.read_metrics(run_dir, "checkpoint")[-1]["accounts"]
    assert last["domain"]["strata"]["domain@1/high"]["samples"] > 0
    entry = json.loads((run_dir / "ledger.jsonl").read_text())
    assert (entry["n_start"], entry["generations"]) == (40, {"domain": [1]})
    words = [sys.executable, "-m", "cpt_dist.data.ledger", f"run_dir={run_dir}", "steps=1-20"]
    subprocess.run([*words, f"json={run_dir}/a.json"], cwd=tiny_run.ROOT, check=True, capture_output=True)
    answer = json.loads((run_dir / "a.json").read_text())["sources"]["domain"]
    assert {name: view["tokens"] for name, view in answer["strata"].items()} == {
        name: view["tokens"] for name, view in last["domain"]["strata"].items()
    }


def grow(config):
    from omegaconf import OmegaConf

    from cpt_dist.config import CptConfig

    raw = Path(config["data"]["sources"]["domain"]["raw"][0]).with_name("more.jsonl")
    tiny_run.write_corpus(raw, 50, 60, seed=7)
    typed = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(CptConfig), config))
    typed.data.sources["domain"].raw.append(str(raw))
    typed.data.sources["domain"].grow = True
    typed.data.sources["domain"].strata = StrataConfig(edges=[20.0, 40.0])
    prepare(typed)
