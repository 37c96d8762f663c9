"""Two results may be compared where their specs are one, and what differs is named."""

import json

import pytest

from cpt_dist.errors import UserError
from cpt_dist.probe.spec import differences, read_task, refuse_other_spec
from tests.evaluation.suites.small import write_rows
from tests.probe.small import configured, rows, write_task


@pytest.fixture
def folder(tmp_path):
    return write_task(tmp_path, items=6, examples=9)


def gold(folder, **fields):
    path = folder / "gold.yaml"
    path.write_text(path.read_text() + "".join(f"{key}: {json.dumps(value)}\n" for key, value in fields.items()))


CHANGES = {
    "data.content": lambda folder, config: write_rows(folder / "train.jsonl", rows(9, 3)),
    "data.examples": lambda folder, config: write_rows(folder / "train.jsonl", rows(8, 2)),
    "template.delimiter": lambda folder, config: gold(folder, delimiter=" = "),
    "gold.content": lambda folder, config: write_rows(folder / "gold.jsonl", rows(6, 5)),
    "gold.metric": lambda folder, config: gold(folder, metric="acc_norm"),
    "gold.limit": lambda folder, config: setattr(config.suites, "limit", 3),
    "recipe.learning_rate": lambda folder, config: setattr(config.probe, "learning_rate", 1e-4),
    "recipe.warmup": lambda folder, config: setattr(config.probe, "warmup", 0.2),
    "recipe.epochs": lambda folder, config: setattr(config.probe, "epochs", 2.0),
    "recipe.batch_tokens": lambda folder, config: setattr(config.probe, "batch_tokens", "2048"),
    "recipe.seq_len": lambda folder, config: setattr(config.probe, "seq_len", 256),
    "recipe.weight_decay": lambda folder, config: setattr(config.probe, "weight_decay", 0.1),
    "recipe.beta2": lambda folder, config: setattr(config.optimizer, "beta2", 0.99),
    "recipe.precision": lambda folder, config: setattr(config.engine, "precision", "bf16"),
    "recipe.separator": lambda folder, config: setattr(config.data, "separator", "<|end|>"),
}


@pytest.mark.parametrize("field", CHANGES)
def test_results_of_different_specs_are_refused_by_the_name_of_the_field(folder, field):
    before = read_task(configured(folder, folder / "model"))
    config = configured(folder, folder / "model")
    CHANGES[field](folder, config)
    after = read_task(config)
    assert after.hash != before.hash
    with pytest.raises(UserError, match=rf"'arm' is the result of another spec, {field}: .* here, .* there; fix"):
        refuse_other_spec(after, json.loads(json.dumps(before.spec)), "'arm'", "fix")


def test_paths_seeds_and_processes_are_not_part_of_the_spec(folder, tmp_path):
    before = read_task(configured(folder, folder / "model"))
    other = write_task(tmp_path / "elsewhere", items=6, examples=9)
    after = read_task(configured(other, other / "model", seeds=[5, 6, 7, 8], processes=2, keep_models=True))
    assert differences(before.spec, after.spec) == []
    refuse_other_spec(after, json.loads(json.dumps(before.spec)), "it", "fix")


def test_examples_are_made_by_the_template_that_asks_the_gold_items(folder):
    gold(folder, delimiter=" is ")
    task = read_task(configured(folder, folder / "model"))
    first = json.loads((folder / "train.jsonl").read_text().splitlines()[0])
    assert task.pairs()[0] == {"prompt": first["query"], "completion": f" is {first['choices'][first['gold']]}"}


def test_a_gold_set_that_is_trained_on_or_not_frozen_is_refused(folder):
    write_rows(folder / "train.jsonl", [*rows(9, 2), *rows(6, 1)[:2]])
    with pytest.raises(UserError, match=r"2 of the 11 examples in .* have the prompt of an item"):
        read_task(configured(folder, folder / "model"))
    (folder / "gold.yaml").write_text("task: arc_easy\n")
    with pytest.raises(UserError, match="the gold set must be frozen"):
        read_task(configured(folder, folder / "model"))
