"""Suites on a tiny model: our scores are those of lm-evaluation-harness' own Hugging Face backend, item by item."""

import json
import logging
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from cpt_dist.config import ModelConfig
from cpt_dist.errors import UserError
from cpt_dist.evaluation.scorers import packed_logits
from cpt_dist.evaluation.suites.adapter import PackedLM
from cpt_dist.evaluation.suites.answers import Answerer
from cpt_dist.evaluation.suites.suite_file import read_suites
from cpt_dist.evaluation.suites.tasks import load_tasks, run_suite
from cpt_dist.evaluation.suites.text_model import TextModel
from cpt_dist.model.load import load_model
from tests.evaluation.suites.small import model_folder, questions, suite_file, write_rows
from tests.helpers.tokenizer import tiny_tokenizer

WORDS = ["one", "two", "é", "three"]
CLOZE = [{"context": f"number {i} comes before ", "target": word} for i, word in enumerate(WORDS)]
TASK_FILES = {
    "their_choices": """
output_type: multiple_choice
doc_to_text: "{{query}}"
doc_to_choice: choices
doc_to_target: gold
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
""",
    "their_cloze": """
output_type: loglikelihood
doc_to_text: "{{context}}"
doc_to_target: "{{target}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
    "their_texts": """
output_type: generate_until
doc_to_text: "{{context}}"
doc_to_target: "{{target}}"
generation_kwargs: {until: ["w"], max_gen_toks: 12, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
    "their_rolling": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{context * 20}}"
metric_list: [{metric: bits_per_byte}]
""",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, whose tokenizer adds BOS, and a folder of the library's own task files."""
    folder = tmp_path_factory.mktemp("tasks")
    model_folder(folder / "model")
    tiny_tokenizer(folder / "model", adds_bos=True)
    for name, text in TASK_FILES.items():
        data = write_rows(folder / "tasks" / f"{name}.jsonl", questions(15) if name == "their_choices" else CLOZE)
        head = f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test"
        (folder / "tasks" / f"{name}.yaml").write_text(head + text)
    return folder


@pytest.fixture(scope="module")
def lm(folder):
    model = load_model(ModelConfig(path=str(folder / "model"))).eval()
    return PackedLM(TextModel(str(folder / "model"), Answerer(packed_logits(model), 256, batch_tokens=300)))


def samples(lm, tasks):
    from lm_eval.evaluator import evaluate

    for task in tasks.values():
        task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=1)
    return evaluate(lm=lm, task_dict={"tasks": tasks, "groups": {}}, bootstrap_iters=0, log_samples=True)["samples"]


@pytest.fixture(scope="module")
def both(folder, lm):
    """Samples of all task files, ours and those of the library's backend."""
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import AutoModelForCausalLM, AutoTokenizer

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    tasks = TaskManager(include_path=str(folder / "tasks"), include_defaults=False).load(list(TASK_FILES))["tasks"]
    ours = samples(lm, tasks)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    theirs = samples(HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, device="cpu"), tasks)
    return ours, theirs


@pytest.mark.parametrize("name", TASK_FILES)
def test_scores_equal_the_librarys_own_backend_item_by_item(both, name):
    ours, theirs = (found[name] for found in both)
    assert len(ours) == len(theirs) > 0
    for mine, other in zip(ours, theirs, strict=True):
        assert mine["doc_hash"] == other["doc_hash"]
        assert mine["metrics"] == other["metrics"]
        for metric in mine["metrics"]:
            assert mine[metric] == pytest.approx(other[metric], abs=1e-3)
        for left, right in zip(mine["resps"], other["resps"], strict=True):
            if name == "their_texts":
                assert left == right
            elif name == "their_rolling":
                assert left[0] == pytest.approx(right[0], abs=1e-3)
            else:
                assert left[0][0] == pytest.approx(right[0][0], abs=1e-3)
                assert left[0][1] == right[0][1]
    values = [sample["resps"] for sample in ours]
    assert len({str(value) for value in values}) > 1


def test_a_suite_file_gives_the_scores_of_the_same_task_file(folder, lm, both, tmp_path):
    suites = read_suites([str(suite_file(tmp_path, rows=questions(15), metric="acc_norm"))])
    scores = run_suite(suites[0], load_tasks(suites, [])["words"], lm)
    assert scores.values.tolist() == [sample["acc_norm"] for sample in both[0]["their_choices"]]
    assert set(scores.chance) == {0.25}
    gold = [sample["resps"][sample["target"]][0][0] for sample in both[0]["their_choices"]]
    words = [sample["doc"]["choices"][sample["target"]] for sample in both[0]["their_choices"]]
    expected = [-value / np.log(2) / len(word) for value, word in zip(gold, words, strict=True)]
    assert scores.answer_bits == pytest.approx(expected, rel=1e-6)


def test_a_task_of_a_folder_is_found_by_its_name_without_a_hub(folder, lm):
    suites = read_suites(["their_cloze"])
    scores = run_suite(suites[0], load_tasks(suites, [str(folder / "tasks")])["their_cloze"], lm, limit=3)
    assert len(scores.values) == 3
    assert (scores.metric, scores.higher_is_better, scores.chance.tolist()) == ("acc", True, [0.0] * 3)


def test_a_metric_without_values_of_items_is_not_run(folder, lm):
    suites = read_suites(["their_rolling"])
    scores = run_suite(suites[0], load_tasks(suites, [str(folder / "tasks")])["their_rolling"], lm)
    assert scores.not_run == "its metric 'bits_per_byte' has no value for a single item; name another one"


def test_data_that_cannot_be_had_is_not_run(lm, tmp_path):
    (tmp_path / "gone.yaml").write_text(
        "task: gone\ndataset_path: json\ndataset_kwargs: {data_files: {test: /nowhere.jsonl}}\ntest_split: test\n"
        "doc_to_text: a\ndoc_to_target: b\noutput_type: loglikelihood\n"
    )
    suites = read_suites(["gone"])
    tasks = load_tasks(suites, [str(tmp_path)])
    scores = run_suite(suites[0], tasks["gone"], lm)
    assert scores.not_run.startswith("its data or its code doesn't load here (Unable to find")


def test_code_that_the_model_writes_is_never_executed(folder, lm, tmp_path):
    text = (folder / "tasks" / "their_texts.yaml").read_text()
    (tmp_path / "unsafe.yaml").write_text(text.replace("their_texts\n", "unsafe\nunsafe_code: true\n", 1))
    suites = read_suites(["unsafe"])
    scores = run_suite(suites[0], load_tasks(suites, [str(tmp_path)])["unsafe"], lm)
    assert scores.not_run == "it executes code that the model writes, which is never done here"


def test_an_unknown_task_is_refused_with_the_nearest(folder):
    with pytest.raises(UserError, match="there is no task 'their_clozes'; did you mean 'their_cloze'"):
        load_tasks(read_suites(["their_clozes"]), [str(folder / "tasks")])


def test_worked_examples_stand_before_the_question_and_are_not_searched_for(lm, tmp_path):
    path = suite_file(tmp_path, rows=questions(5), fewshot=2, fewshot_data="shots.jsonl")
    write_rows(tmp_path / "shots.jsonl", questions(4, seed=9))
    suites = read_suites([str(path)])
    tasks = load_tasks(suites, [])["words"]
    scores = run_suite(suites[0], tasks, lm)
    context = tasks["words"].instances[0].args[0]
    assert context.count("which word follows") == 3
    assert [text.count("which word follows") for text in scores.texts] == [1] * 5


@pytest.mark.e2e
def test_scores_equal_those_of_the_librarys_own_command_line_item_by_item(folder, lm, both, tmp_path):
    words = ["--model", "hf", "--model_args", f"pretrained={folder / 'model'},dtype=float32"]
    words += ["--tasks", "their_choices"]
    words += ["--include_path", str(folder / "tasks"), "--num_fewshot", "0", "--device", "cpu", "--batch_size", "4"]
    words += ["--log_samples", "--output_path", str(tmp_path)]
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-m", "lm_eval", *words], env=offline, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (written,) = tmp_path.rglob("samples_their_choices_*.jsonl")
    theirs = {s["doc_hash"]: s for s in map(json.loads, written.read_text(encoding="utf-8").splitlines())}
    ours = {sample["doc_hash"]: sample for sample in both[0]["their_choices"]}
    assert ours.keys() == theirs.keys()
    assert {key: (s["acc"], s["acc_norm"]) for key, s in ours.items()} == {
        key: (s["acc"], s["acc_norm"]) for key, s in theirs.items()
    }
