"""Distillation on two ranks is that of one process: FSDP2, ZeRO-3, a tied teacher, rows that ranks share."""

import copy

import pytest

from tests.engine.conftest import run_jobs
from tests.helpers import in_process, models, tiny_run

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

STEPS = 5
TIED = {"weight": 2.0, "temperature": 2.0, "teacher": "tied"}
ENGINES = {
    "fsdp": ({"name": "fsdp"}, {"weight": 2.0}),
    "zero": ({"name": "zero", "zero_stage": 3}, {"weight": 2.0}),
    "fsdp, tied": ({"name": "fsdp", "micro_batch": 2}, TIED),
    "fsdp, shared rows": ({"name": "fsdp", "context_parallel": 2}, TIED),
    "zero, shared rows": ({"name": "zero", "context_parallel": 2, "context_parallel_method": "ring"}, {"weight": 2.0}),
    "bf16": ({"name": "fsdp", "precision": "bf16"}, {"weight": 2.0}),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distillation")
    base = tiny_run.build(folder)
    base["stages"][0]["tokens"] = str(STEPS * 256)
    models.tiny_qwen2(folder / "tied", seed=5, hidden_size=32)
    tiny_run.write_tokenizer(folder / "tied")

    def job(name, engine, distillation):
        config = copy.deepcopy(base) | {"run_dir": str(folder / name), "distillation": dict(distillation)}
        config["engine"] = config["engine"] | engine
        if "teacher" in distillation:
            config["distillation"]["teacher"] = str(folder / distillation["teacher"])
        return config

    for name, distillation in {"one": {"weight": 2.0}, "one, tied": TIED}.items():
        in_process.train(job(name, {}, distillation), folder / name)
    run_jobs(folder, [(2, {"config": job(name, *how)}) for name, how in ENGINES.items()])
    return folder


@pytest.mark.parametrize("name", ENGINES)
def test_losses_gradients_and_divergences_are_those_of_one_process(runs, name):
    expected = tiny_run.read_metrics(runs / ("one, tied" if ENGINES[name][1] is TIED else "one"))
    found = tiny_run.read_metrics(runs / name)
    assert len(found) == STEPS
    assert found[-1]["distillation_kl"] > 0.01
    tolerance = 2e-2 if name == "bf16" else 1e-5
    for key in ("loss", "distillation_kl", "grad_norm")[: 2 if name == "bf16" else 3]:
        wanted = [record[key] for record in expected]
        assert [record[key] for record in found] == pytest.approx(wanted, rel=tolerance, abs=tolerance), key
    assert [one["distilled_tokens"] for one in found] == [one["distilled_tokens"] for one in expected]
