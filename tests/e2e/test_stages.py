"""Two stages of different length and RoPE, as a user runs them."""

import json

import pytest

from tests.helpers import tiny_run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


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


def test_a_stage_that_upsamples_long_documents_trains_counts_joined_tokens_and_needs_short_ones(experiment):
    folder, configs = experiment
    change = "stages.1.mixture={domain: {share: 0.7, length_upsampling: {min_tokens: 32, factor: 4}}, general: 0.3}"
    options = [f"--config-dir={configs}", "experiment=tiny", f"run_dir={folder}/upsampled"]
    # No document has the 128 tokens that the model was trained at, so even this share of short ones is reached.
    tiny_run.launch("python", 1, "train.py", *options, change, "long_data.min_short_share=1")
    accounts = tiny_run.read_metrics(folder / "upsampled", "checkpoint")[-1]["accounts"]
    domain = accounts["domain"]
    assert set(domain["strata"]) == {"domain/under_32", "domain/from_32"}
    assert domain["joined_tokens"] == domain["tokens"] > 0
    assert domain["planned_joined_tokens"] == pytest.approx(domain["planned_tokens"])
    assert domain["planned_tokens"] / accounts["general"]["planned_tokens"] == pytest.approx(7 / 3)
    steps = tiny_run.read_metrics(folder / "upsampled")
    assert sum(record["joined_tokens"] for record in steps) == sum(one["joined_tokens"] for one in accounts.values())
    override = "stages.1.rope={type: yarn, original: 16}"
    done = tiny_run.launch("python", 1, "train.py", *options[:2], f"run_dir={folder}/refused", override, check=False)
    assert done.returncode == 2
    assert "of its tokens lie in documents of fewer than 16 tokens" in done.stderr
