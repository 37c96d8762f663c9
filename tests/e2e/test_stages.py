"""Two stages of different length and RoPE, as a user runs them."""

import json

import pytest

from tests.helpers import tiny_run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stages")
    config = tiny_run.build(folder)
    first = config["stages"][0] | {"tokens": "1024"}
    second = first | {
        "name": "long",
        "seq_len": 256,
        "batch_tokens": "512",
        "rope": {"type": "yarn"},
        "schedule": {"name": "linear_to_zero"},
    }
    config["stages"] = [first, second]
    config["checkpoint"] = {"every_steps": 2, "keep_last": 0}
    return folder, tiny_run.write_experiment(folder, config)


def test_each_checkpoint_is_exported_with_the_rope_that_it_was_trained_with(experiment):
    folder, configs = experiment
    options = [f"--config-dir={configs}", "experiment=tiny"]
    tiny_run.launch("python", 1, "train.py", *options)
    records = tiny_run.read_metrics(folder / "run")
    assert [record["stage"] for record in records] == ["main"] * 4 + ["long"] * 2
    assert records[-1]["lr"] == 0.0
    exported = {}
    for step in (4, 6):
        # The consolidated model is loaded by transformers and its logits are compared with the training model's.
        out = folder / f"model-{step}"
        done = tiny_run.launch(
            "python", 1, "consolidate.py", *options, f"consolidate.step={step}", f"consolidate.out={out}"
        )
        assert "logits equal" in done.stdout
        exported[step] = json.loads((out / "config.json").read_text())
    assert (exported[4]["rope_scaling"], exported[4]["max_position_embeddings"]) == (None, 128)
    assert (exported[6]["rope_scaling"]["rope_type"], exported[6]["max_position_embeddings"]) == ("yarn", 256)
