import copy

import pytest
import torch

from cpt_dist.checkpoint.dcp import SafeReader
from tests.engine.conftest import run_jobs
from tests.helpers import tiny_run

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

ENGINES = {
    "one": (1, {"name": "fsdp"}),
    "fsdp 2": (2, {"name": "fsdp"}),
    "zero 2": (2, {"name": "zero"}),
    "zero2 2": (2, {"name": "zero", "zero_stage": 2}),
}
FROZEN, SLOW = "embed_tokens.weight", "layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def one_step(tmp_path_factory):
    """Engine -> (weights before, weights after one step, learning rate in the metrics)."""
    folder = tmp_path_factory.mktemp("rates")
    base = tiny_run.build(folder)
    base["stages"][0]["tokens"] = "256"
    base["schedule"] = {"name": "constant", "peak_lr": 1e-2, "warmup": 0.0}
    base["checkpoint"] = {"every_steps": 1, "keep_last": 0}
    base["optimizer"] = {"weight_decay": 0.0, "max_grad_norm": 0.0, "epsilon": 1e-20}
    base["optimizer"]["lr_multipliers"] = {f"*{FROZEN}": 0.0, f"*{SLOW}": 0.25}
    jobs = []
    for name, (size, engine) in ENGINES.items():
        config = copy.deepcopy(base) | {"run_dir": str(folder / name)}
        config["engine"] = config["engine"] | engine
        jobs.append((size, {"config": config}))
    run_jobs(folder, jobs)
    from safetensors.torch import load_file

    before = load_file(folder / "model" / "model.safetensors")

    def result(name):
        reader = SafeReader(folder / name / "checkpoints" / "step-00000001" / "state")
        after = {key: reader.tensor(f"model.{key}") for key in before}
        return before, after, tiny_run.read_metrics(folder / name)[0]["lr"]

    return result


@pytest.mark.parametrize("name", ENGINES)
def test_the_learning_rate_that_is_logged_is_what_each_group_moves_by(one_step, name):
    # Adam's first step moves every weight by the learning rate, whatever the size of its gradient.
    before, after, rate = one_step(name)
    for key, weights in before.items():
        factor = 0.0 if key.endswith(FROZEN) else 0.25 if key.endswith(SLOW) else 1.0
        moved = (after[key] - weights).abs().max()
        torch.testing.assert_close(moved, torch.tensor(rate * factor), rtol=1e-3, atol=0.0, msg=key)
