"""What a stage does to optimizer and trainability: the same on every engine and world size, and after a resume."""

import copy
import shutil

import pytest
import torch

from cpt_dist.checkpoint.dcp import SafeReader
from tests.engine.conftest import run_jobs
from tests.helpers import tiny_run

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(1200)]

WHOLE = {
    "one": (1, {"name": "fsdp"}),
    "fsdp 2": (2, {"name": "fsdp"}),
    "zero3 2": (2, {"name": "zero", "zero_stage": 3}),
    "zero2 2": (2, {"name": "zero", "zero_stage": 2}),
    "zero0 2": (2, {"name": "zero", "zero_stage": 0}),
}
EDGE, AFTER, UNFROZEN, LAST = 3, 4, 6, 8
RESUMES = {
    "at the edge": ("zero3 2", EDGE, 1, {"name": "fsdp"}),
    "after the edge": ("fsdp 2", AFTER, 3, {"name": "zero", "zero_stage": 3}),
    "where all are trained again": ("one", UNFROZEN, 2, {"name": "zero", "zero_stage": 1}),
    "after that": ("zero2 2", UNFROZEN + 1, 3, {"name": "fsdp"}),
}
TRAINED = "model.layers.0."
RATE = 1e-3


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("optimizer")
    base = tiny_run.build(folder)
    stage = base["stages"][0] | {"batch_tokens": "256"}
    base["stages"] = [
        stage | {"name": "all", "tokens": str(EDGE * 256)},
        stage
        | {
            "name": "some",
            "tokens": str((UNFROZEN - EDGE) * 256),
            "optimizer": "reset",
            "trainable": ["*", "!*", "model.layers.0.*"],
        },
        stage | {"name": "all again", "tokens": str((LAST - UNFROZEN) * 256)},
    ]
    base["schedule"] = {"name": "constant", "peak_lr": RATE, "warmup": 0.0}
    base["optimizer"] = {"weight_decay": 0.1, "epsilon": 1e-20}
    base["checkpoint"] = {"every_steps": 1, "keep_last": 0}

    def job(name, engine):
        config = copy.deepcopy(base) | {"run_dir": str(folder / name)}
        config["engine"] = config["engine"] | engine
        return {"config": config}

    run_jobs(folder, [(size, job(name, engine)) for name, (size, engine) in WHOLE.items()])
    jobs = []
    for name, (writer, step, size, engine) in RESUMES.items():
        shutil.copytree(folder / writer, folder / name)
        for later in range(step + 1, LAST + 1):
            shutil.rmtree(folder / name / "checkpoints" / f"step-{later:08d}")
        jobs.append((size, job(name, engine)))
    run_jobs(folder, jobs)
    return folder


def tensors(run_dir, step):
    reader = SafeReader(run_dir / "checkpoints" / f"step-{step:08d}" / "state")
    return {name: reader.tensor(name) for name in reader.tensor_shapes()}


@pytest.mark.parametrize("name", [*WHOLE, *RESUMES])
def test_losses_and_gradient_norms_are_those_of_one_process(runs, name):
    for key in ("loss", "grad_norm"):
        expected = [record[key] for record in tiny_run.read_metrics(runs / "one")]
        found = [record[key] for record in tiny_run.read_metrics(runs / name)]
        assert len(expected) == LAST
        assert found == pytest.approx(expected, rel=1e-5 if key == "loss" else 1e-4)


@pytest.mark.parametrize("name", WHOLE)
def test_what_is_frozen_keeps_weights_and_moments_bit_by_bit(runs, name):
    before, after = tensors(runs / name, EDGE), tensors(runs / name, UNFROZEN)
    for key, weight in before.items():
        if key.startswith("model."):
            trained = key.startswith(f"model.{TRAINED}")
            assert weight.equal(after[key]) != trained, key
        elif TRAINED not in key:
            assert not after[key].any(), key  # reset to 0, and nothing came


@pytest.mark.parametrize("name", [*WHOLE, "at the edge", "where all are trained again"])
def test_a_parameter_takes_a_first_step_of_adam_after_a_reset_and_after_its_thaw(runs, name):
    # Adam's first step moves a weight by the learning rate, whatever the gradient; later ones don't.
    for step, first in ((AFTER, lambda key: TRAINED in key), (UNFROZEN + 1, lambda key: TRAINED not in key)):
        before, after = tensors(runs / name, step - 1), tensors(runs / name, step)
        for key in [key for key in before if key.startswith("model.") and first(key)]:
            decay = 0.1 if before[key].dim() >= 2 else 0.0
            moved = (after[key] - before[key] * (1 - RATE * decay)).abs().max()
            torch.testing.assert_close(moved, torch.tensor(RATE), rtol=2e-3, atol=0.0, msg=key)
