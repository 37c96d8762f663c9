"""A run's history as it led to the final model, whatever was killed on the way."""

import json

import pytest

from cpt_dist.evaluation.run_log import RunLog


def write(path, records, tail=""):
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + tail)
    return RunLog.read(path)


def step(number, **more):
    record = {"kind": "step", "step": number, "loss": 10.0 - number, "tokens": 100 * number, "tokens_per_second": 50}
    return record | more


def test_steps_of_a_killed_run_that_were_made_again_count_once(tmp_path):
    records = [
        {"kind": "run", "step": 0, "engine": "zero", "zero_stage": 3, "world_size": 2, "model": "m"},
        *(step(number) for number in range(1, 8)),
        {"kind": "resume", "step": 4, "engine": "fsdp", "world_size": 1},
        step(5, loss=1.0),
        step(6),
    ]
    log = write(tmp_path / "metrics.jsonl", records)
    assert [record["step"] for record in log.steps] == [1, 2, 3, 4, 5, 6]
    assert log.steps[4]["loss"] == 1.0
    facts = log.facts()
    assert (facts["steps"], facts["tokens"], facts["lost_steps"]) == (6, 600, 3)
    assert [(start["step"], start["engine"], start["world_size"]) for start in facts["starts"]] == [
        (0, "zero", 2),
        (4, "fsdp", 1),
    ]


def test_evaluations_of_a_lost_stretch_are_forgotten(tmp_path):
    def evaluation(number, value):
        return {"kind": "evaluation", "step": number, "sources": {"law": {"bits_per_byte": value}}}

    log = write(
        tmp_path / "metrics.jsonl",
        [evaluation(0, 1.0), step(1), step(2), evaluation(2, 0.9), {"kind": "resume", "step": 1}, evaluation(1, 0.8)],
    )
    assert [(r["step"], r["sources"]["law"]["bits_per_byte"]) for r in log.evaluations] == [(0, 1.0), (1, 0.8)]


def test_a_resume_takes_back_what_came_after_its_checkpoint_before_any_new_step(tmp_path):
    evaluation = {"kind": "evaluation", "step": 6, "sources": {}}
    records = [*(step(number) for number in range(1, 7)), evaluation, {"kind": "resume", "step": 4}]
    log = write(tmp_path / "metrics.jsonl", records)
    assert ([record["step"] for record in log.steps], log.evaluations, log.num_lost_steps) == ([1, 2, 3, 4], [], 2)


def test_a_torn_line_and_strange_lines_are_counted_not_fatal(tmp_path):
    log = write(tmp_path / "metrics.jsonl", [step(1), [1, 2], {"kind": "step"}], tail='{"kind": "st')
    assert (len(log.steps), log.num_unreadable_lines) == (1, 3)


@pytest.mark.parametrize("content", [None, ""])
def test_no_metrics_give_no_log(tmp_path, content):
    path = tmp_path / "metrics.jsonl"
    if content is not None:
        path.write_text(content)
    assert RunLog.read(path) is None


def test_what_the_metrics_do_not_say_is_none_and_not_zero(tmp_path):
    facts = write(tmp_path / "metrics.jsonl", [{"kind": "run", "step": 0}]).facts()
    assert facts["tokens"] is facts["tokens_per_second"] is facts["last_loss"] is facts["model"] is None
