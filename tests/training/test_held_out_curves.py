"""Curves of gain and forgetting: against the first evaluation, also after a resume, and of the same documents only."""

import json
from types import SimpleNamespace

import pytest

from cpt_dist.training import callbacks
from cpt_dist.training.held_out_curves import HeldOutCurves, held_out_line
from cpt_dist.training.metrics import WandbMirror


def summary(bits, num_bytes=100, documents=2):
    return {"bits_per_byte": bits, "bytes": num_bytes, "documents": documents}


@pytest.fixture
def metrics(tmp_path):
    return tmp_path / "metrics.jsonl"


def test_a_change_is_against_the_first_evaluation(metrics):
    curves = HeldOutCurves(metrics)
    assert curves.record(0, {"law": summary(1.0), "wiki": summary(2.0)})["changes"] == {"law": 0.0, "wiki": 0.0}
    record = curves.record(5, {"law": summary(0.75), "wiki": summary(2.5)})
    assert record["changes"] == {"law": -0.25, "wiki": 0.5}
    assert curves.record(9, {"law": summary(0.5), "wiki": summary(2.0)})["changes"] == {"law": -0.5, "wiki": 0.0}


def test_a_resumed_job_goes_on_with_the_first_evaluation_of_the_run(metrics):
    first = HeldOutCurves(metrics).record(0, {"law": summary(1.0)})
    later = HeldOutCurves(metrics).record(5, {"law": summary(0.7)})
    lines = [
        json.dumps({"kind": "step", "step": 1}),
        json.dumps(first),
        json.dumps(later),
        '{"kind": "evaluation", "st',
    ]
    metrics.write_text("\n".join(lines))
    assert HeldOutCurves(metrics).record(9, {"law": summary(0.5)})["changes"] == {"law": -0.5}


def test_a_run_that_was_begun_again_is_measured_from_its_own_start(metrics):
    curves = HeldOutCurves(metrics)
    metrics.write_text("\n".join(json.dumps(curves.record(0, {"law": summary(bits)})) for bits in (3.0, 1.0)))
    assert HeldOutCurves(metrics).record(9, {"law": summary(0.5)})["changes"] == {"law": -0.5}


@pytest.mark.parametrize("now", [summary(0.5, num_bytes=90), summary(0.5, documents=3)])
def test_other_documents_have_no_curve(metrics, now):
    curves = HeldOutCurves(metrics)
    curves.record(0, {"law": summary(1.0)})
    assert curves.record(5, {"law": now, "new": summary(1.0)})["changes"] == {}


def test_the_display_shows_domain_before_general_text_with_the_changes(metrics):
    curves = HeldOutCurves(metrics)
    roles = {"wiki": "replay", "law": "domain"}
    start = curves.record(0, {"wiki": summary(2.0), "law": summary(1.0)})
    assert held_out_line(start, roles) == "held-out bits per byte: law 1.0000, wiki 2.0000"
    later = curves.record(5, {"wiki": summary(2.5), "law": summary(0.75)})
    assert held_out_line(later, roles) == "held-out bits per byte: law 0.7500 (-0.2500), wiki 2.5000 (+0.5000)"


def test_weights_and_biases_gets_each_evaluation_once_under_its_step():
    sent = []
    mirror = WandbMirror()
    mirror._wandb = SimpleNamespace(log=lambda values, step: sent.append((step, values)), finish=lambda: None)
    mirror._sent = {}
    run = SimpleNamespace(last_record={"step": 5}, last_evaluation={})
    mirror.after_step(run, SimpleNamespace(step=5))
    run.last_evaluation = {"step": 5, "sources": {}, "changes": {"law": -0.1}}
    run.last_record = {"step": 6}
    mirror.after_step(run, SimpleNamespace(step=6))
    mirror.on_end(run)
    assert sent == [
        (5, {"step": 5}),
        (5, {"held_out": {"sources": {}, "changes": {"law": -0.1}}}),
        (6, {"step": 6}),
    ]


def test_the_job_scores_where_the_schedule_says(monkeypatch):
    evaluated = []
    monkeypatch.setattr(callbacks.HeldOutEvaluation, "_evaluate", lambda self, run: evaluated.append(run.step))
    evaluation = callbacks.HeldOutEvaluation()
    config = SimpleNamespace(evaluation=SimpleNamespace(schedule="log", every_steps=0))
    for step in range(1, 201):
        run = SimpleNamespace(config=config, num_steps=200, step=step, finished=step == 200)
        evaluation.after_step(run, SimpleNamespace(step=step))
    assert evaluated == [1, 2, 4, 8, *range(15, 200, 5), 200]
