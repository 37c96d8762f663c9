"""Training with the Triton kernels, in their interpreter, on both engines."""

import copy
import json

import pytest

from tests.engine.conftest import torchrun
from tests.helpers import tiny_run

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(1200)]
LAYERS = ["rms_norm", "add_rms_norm", "rope", "swiglu"]
TRITON = dict.fromkeys([*LAYERS, "linear_cross_entropy", "attention", "adamw"], "triton")
ENGINES = {"fsdp": {"name": "fsdp"}, "zero": {"name": "zero"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The runs of both engines, by the layers' own code and by the kernels, in one process."""
    folder = tmp_path_factory.mktemp("kernels")
    base = tiny_run.build(folder)
    base["stages"][0] |= {"tokens": "48", "seq_len": 16, "batch_tokens": "16"}
    jobs = []
    for engine, changes in ENGINES.items():
        for name, kernels in (("model", {}), ("triton", TRITON)):
            config = copy.deepcopy(base) | {"run_dir": str(folder / f"{engine} {name}"), "kernels": kernels}
            config["engine"] = config["engine"] | changes
            jobs.append({"config": config})
    (folder / "jobs.json").write_text(json.dumps(jobs))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        torchrun(1, "tests.helpers.worker", folder / "jobs.json")
    return folder


@pytest.mark.parametrize("engine", ENGINES)
def test_training_by_triton_kernels_gives_the_losses_of_the_reference(folder, engine):
    losses = {
        name: [record["loss"] for record in tiny_run.read_metrics(folder / f"{engine} {name}")]
        for name in ("model", "triton")
    }
    assert len(losses["model"]) == 3
    assert losses["triton"] == pytest.approx(losses["model"], rel=1e-5)
    assert losses["triton"] != losses["model"]  # or the kernels did not run


@pytest.mark.parametrize("engine", ENGINES)
def test_the_run_records_the_modules_and_the_backends_that_ran(folder, engine):
    (record,) = tiny_run.read_metrics(folder / f"{engine} triton", "kernels")
    assert record["installed"] == {"rms_norm": 5, "add_rms_norm": 2, "rope": 2, "swiglu": 2}
    ran = {one["operation"] for one in record["chosen"] if one["backend"] == "triton"}
    assert ran == {*LAYERS, "linear_cross_entropy", "packed_attention", "document_attention", "adamw"}
