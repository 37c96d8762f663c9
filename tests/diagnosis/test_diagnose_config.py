"""What is wrong with the values of `diagnose`."""

import pytest

from cpt_dist import diagnose_config
from cpt_dist.cli import composed
from cpt_dist.config import CptConfig
from cpt_dist.diagnose_config import DiagnoseConfig, diagnose_problems
from cpt_dist.diagnosis.inputs import check_inputs
from cpt_dist.errors import UserError
from cpt_dist.planning import adaptation
from cpt_dist.validation import validate

WRONG = [
    ({"need": "knowlege"}, "did you mean 'knowledge'?"),
    ({"privacy": "removeable"}, "did you mean 'removable'?"),
    ({"domain": 3}, "3 is no path and no list of paths"),
    ({"accuracy": 70.0, "target": 0.8}, "70.0 is no share"),
    ({"accuracy": 0.7}, "it says nothing without target"),
    ({"target": 0.7}, "it says nothing without accuracy"),
    ({"instructions": -1}, "-1 must be at least 0"),
    ({"fresh_days": 0.0}, "0.0 must be positive"),
    ({"pilot_share": 0.0}, "within 0 (exclusive) to 1"),
    ({"gpu_hours": 3.0}, "diagnose.tflops_per_gpu: gpu_hours and tflops_per_gpu are read together"),
    ({"gpus": 8}, "diagnose.gpu_memory: gpus and gpu_memory are read together"),
    ({"gpu_hours": 3.0, "tflops_per_gpu": 90.0, "budget_tokens": "5B"}, "keep one of the two"),
    ({"thresholds": {"flor_tokens": 1}}, "did you mean 'floor_tokens'?"),
    ({"thresholds": {"replay_weak": 1.0}}, "a replay share below 1"),
]


@pytest.mark.parametrize(("values", "named"), WRONG)
def test_a_wrong_value_is_named(values, named):
    assert [named in problem for problem in diagnose_problems(DiagnoseConfig(**values))] == [True]


def test_the_defaults_are_right_and_the_names_are_those_of_the_rules():
    assert diagnose_problems(DiagnoseConfig()) == []
    assert tuple(adaptation.THRESHOLDS) == diagnose_config.THRESHOLDS
    assert (diagnose_config.NEEDS, diagnose_config.PRIVACIES) == (adaptation.NEEDS, adaptation.PRIVACIES)


def test_counts_take_units_and_are_checked_with_the_rest():
    config = CptConfig(run_dir="run")
    config.diagnose.budget_tokens = "many"
    with pytest.raises(UserError, match=r"diagnose\.budget_tokens: 'many' is not a whole positive count"):
        validate(config)


def test_files_are_looked_for_before_anything_is_loaded_and_general_text_may_be_missing(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"\x02" + b"\0" * 7 + b"{}")
    (tmp_path / "domain.jsonl").touch()
    words = [f"model.path={tmp_path}", f"diagnose.domain={tmp_path}/domain.jsonl"]
    assert check_inputs(composed(words)) == ([f"{tmp_path}/domain.jsonl"], [])
    with pytest.raises(UserError) as caught:
        check_inputs(composed([*words, "diagnose.domain=[no.jsonl]", "diagnose.general=[none.jsonl]"]))
    assert [problem.split(" ")[:2] for problem in caught.value.problems] == [
        ["diagnose.domain:", "'no.jsonl'"],
        ["diagnose.general:", "'none.jsonl'"],
    ]
