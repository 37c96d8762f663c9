"""A suite file is read whole, or refused with a line a mistake."""

import pytest

from cpt_dist.config import CptConfig
from cpt_dist.errors import UserError
from cpt_dist.evaluation.suites.capabilities import known_task
from cpt_dist.evaluation.suites.suite_file import read_suite, read_suites
from cpt_dist.suites_config import suites_problems
from cpt_dist.training.preflight import check_files
from tests.evaluation.suites.small import questions, suite_file


def problems(call, *arguments):
    with pytest.raises(UserError) as caught:
        call(*arguments)
    return caught.value.problems


def test_items_come_with_their_rendered_prompts(tmp_path):
    rows = questions(3)
    suite = read_suite(suite_file(tmp_path, rows=rows, prompt="Q: {{ query }}\nA:", margin=0.05))
    assert [item.prompt for item in suite.items] == [f"Q: {row['query']}\nA:" for row in rows]
    assert [item.answer for item in suite.items] == [row["choices"][row["gold"]] for row in rows]
    assert (suite.name, suite.capability, suite.metric, suite.margin) == ("words", "language", "acc", 0.05)


def test_text_of_an_item_is_never_a_template(tmp_path):
    rows = [{"query": "{{ 7 * 7 }} {% raw %}", "choices": ["a", "b"], "gold": 0}]
    assert read_suite(suite_file(tmp_path, rows=rows)).items[0].prompt == "{{ 7 * 7 }} {% raw %}"


def test_an_answer_may_be_the_text_of_a_choice(tmp_path):
    rows = [{"query": "q", "choices": ["a", "b"], "gold": "b"}]
    assert read_suite(suite_file(tmp_path, rows=rows)).items[0].gold == 1


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"promt": "x"}, "there is no field 'promt'; did you mean 'prompt'?"),
        ({"kind": "choice"}, "kind: 'choice' is unknown"),
        ({"data": None}, "data is missing"),
        ({"choices": None}, "choices is missing"),
        ({"capability": "maths"}, "capability: 'maths' is unknown; did you mean 'math'?"),
        ({"metric": "bleu"}, "metric: 'bleu' is no metric of multiple_choice"),
        ({"margin": 2}, "margin: 2 must lie between 0 and 1"),
        ({"stop": ["\n"]}, "stop: it is read for kind: generation only"),
        ({"fewshot": 2}, "fewshot: 2 needs fewshot_data"),
        ({"fewshot": "two"}, "fewshot: 'two' must be a int"),
        ({"task": "mmlu"}, "there is no field 'kind' beside task"),
    ],
)
def test_a_wrong_field_is_one_line_that_names_it(tmp_path, fields, expected):
    path = suite_file(tmp_path, **fields)
    found = problems(read_suite, path)
    assert any(line.startswith(f"suite '{path}': {expected}") for line in found), found
    assert not any("\n" in line for line in found)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"query": "q", "choices": ["a", "b"]}, "line 1: there is no field 'gold'"),
        ({"query": "q", "choices": ["a", "b"], "gold": 2}, "line 1: gold: 2 is neither a choice nor its index"),
        ({"query": "q", "choices": ["a"], "gold": 0}, "line 1: choices: ['a'] must be a list of at least two texts"),
        ({"choices": ["a", "b"], "gold": 0}, "line 1: 'query' is undefined"),
    ],
)
def test_a_wrong_item_is_named_by_its_line(tmp_path, row, expected):
    (line,) = problems(read_suite, suite_file(tmp_path, rows=[row]))
    assert expected in line


def test_an_empty_suite_is_refused(tmp_path):
    (line,) = problems(read_suite, suite_file(tmp_path, rows=[]))
    assert line.endswith("words.jsonl' is empty, so there is nothing to ask")


def test_mistakes_of_all_files_are_told_at_once(tmp_path):
    one, two = suite_file(tmp_path, "one", kind="x"), suite_file(tmp_path, "two", rows=[])
    found = problems(read_suites, [str(one), str(two), str(tmp_path / "three.yaml")])
    assert [line.split(":")[0] for line in found] == [f"suite '{p}'" for p in (one, two, tmp_path / "three.yaml")]


def test_two_suites_of_one_name_are_refused(tmp_path):
    paths = [str(suite_file(tmp_path / folder)) for folder in "ab"]
    (line,) = problems(read_suites, paths)
    assert line.startswith("suites.run: two suites are called 'words'")


@pytest.mark.parametrize(
    ("name", "capability", "metric"),
    [
        ("mmlu_anatomy", "knowledge", "acc"),
        ("mmlu_pro_math", "knowledge", "exact_match"),
        ("arc_challenge", "reasoning", "acc_norm"),
        ("gsm8k_cot", "math", "exact_match"),
        ("humaneval", "coding", "pass@1"),
        ("lambada_openai", "language", "acc"),
    ],
)
def test_well_known_tasks_have_a_capability_and_a_metric(name, capability, metric):
    known = known_task(name)
    assert (known.capability, known.metric) == (capability, metric)


def test_an_unknown_task_is_of_no_capability():
    assert known_task("mmlux") is None
    assert read_suites(["my_task"])[0].capability == "other"


@pytest.mark.parametrize(
    ("field", "value"),
    [("limit", -1), ("ngram", 1), ("num_fewshot", -1), ("margin", 1.5), ("temperature", 0.0), ("top_p", 0.0)],
)
def test_a_value_out_of_range_is_refused(field, value):
    config = CptConfig().suites
    assert list(suites_problems(config)) == []
    setattr(config, field, value)
    (line,) = suites_problems(config)
    assert line.startswith(f"suites.{field}: {value}")


def test_asking_inside_training_needs_something_to_ask():
    config = CptConfig().suites
    config.every_steps = 10
    assert list(suites_problems(config)) == [
        "suites.every_steps: 10 asks nothing; name suites.run or suites.probes, or set 0"
    ]
    config.probes = ["facts.jsonl"]
    assert list(suites_problems(config)) == []


def test_a_wrong_suite_is_refused_before_a_model_is_loaded_for_training(tmp_path):
    config = CptConfig()
    config.model.path = "/nowhere"
    config.suites.every_steps, config.suites.run = 5, [str(tmp_path / "missing.yaml")]
    found = problems(check_files, config)
    assert found[0].startswith(f"suite '{tmp_path / 'missing.yaml'}': there is no such file")
