"""The stages of experiment=demo_sft on a tiny model: fine-tuning after continued pretraining, in one plan."""

import json
from pathlib import Path

import pytest
import yaml

from tests.helpers import tiny_run
from tests.helpers.in_process import ledger, train

pytestmark = pytest.mark.e2e

SHIPPED = Path(__file__).resolve().parents[2] / "configs" / "experiment" / "demo_sft.yaml"
NAMES = {"icd10cm": "domain", "sotu": "general", "questions": "questions"}


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    from omegaconf import OmegaConf

    from cpt_dist.config import CptConfig
    from cpt_dist.data.prepare import prepare

    folder = tmp_path_factory.mktemp("sft")
    config = tiny_run.build(folder)
    rows = [{"prompt": f"w{n:03d} w{n + 1:03d}", "completion": f"w{n + 2:03d} w{n + 3:03d}"} for n in range(100, 400)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = {"prompt_field": "prompt", "completion_field": "completion"}
    config["data"]["sources"]["questions"] = {"raw": [str(folder / "questions.jsonl")], **fields}
    prepare(OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(CptConfig), config)))
    config["stages"] = yaml.safe_load(SHIPPED.read_text())["stages"]
    for stage in config["stages"]:
        stage |= {"tokens": "2560", "seq_len": 64, "batch_tokens": "256"}
        stage["mixture"] = {NAMES[source]: share for source, share in stage["mixture"].items()}
    gate = config["stages"][1]["gate"]
    gate["margins"]["held_out"] = {NAMES[source]: 5.0 for source in gate["margins"]["held_out"]}
    config["evaluation"] |= {"max_tokens": "1k", "bootstrap": 200, "during_training": True}
    train(config, folder / "run")
    return folder / "run", tiny_run.read_metrics(folder / "run")


def test_replay_is_mixed_back_and_only_answers_of_questions_are_predicted(records):
    steps = records[1]
    before, after = steps[9]["realised_tokens"], steps[-1]["realised_tokens"]
    assert [steps[9]["stage"], steps[10]["stage"]] == ["cpt", "sft"]
    assert before.get("questions", 0) == 0
    read = {name: after[name] - before.get(name, 0) for name in after}
    assert read["general"] / sum(read.values()) == pytest.approx(0.2, abs=0.05)
    accounts = tiny_run.read_metrics(records[0], "checkpoint")[-1]["accounts"]
    assert accounts["questions"]["loss_tokens"] / accounts["questions"]["tokens"] == 3 / 5


def test_fine_tuning_has_a_gate_of_its_own_against_the_model_before_it(records):
    run, _ = records
    (decision,) = ledger(run, "gate")
    assert (decision["stage"], decision["verdict"]) == ("sft", "pass")
    (record,) = tiny_run.read_metrics(run, "gate")
    assert [one["name"] for one in record["measured"]] == ["general", "domain"]
