"""The programs as a user starts them, through the real launchers."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.helpers import tiny_run

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def reference(tiny):
    """Losses of an uninterrupted run on one process."""
    arguments = tiny.arguments()
    run_dir = tiny.run_dir
    tiny_run.launch("python", 1, "train.py", *arguments)
    return run_dir, [record["loss"] for record in tiny_run.read_metrics(run_dir)]


@pytest.mark.parametrize(("launcher", "engine"), [("deepspeed", "zero"), ("torchrun", "fsdp")])
def test_two_processes_through_the_real_launcher_train_as_one_does(tiny, reference, launcher, engine):
    tiny_run.launch(launcher, 2, "train.py", *tiny.arguments(f"engine.name={engine}"))
    losses = [record["loss"] for record in tiny_run.read_metrics(tiny.run_dir)]
    assert losses == pytest.approx(reference[1], rel=1e-5)


def test_a_saved_configuration_reproduces_its_run(tiny, reference, tmp_path):
    run_dir, losses = reference
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_bytes((run_dir / "config.yaml").read_bytes())
    tiny_run.launch("python", 1, "train.py", f"run_dir={tmp_path / 'run'}")
    assert [record["loss"] for record in tiny_run.read_metrics(tmp_path / "run")] == losses


def test_metrics_hold_what_the_run_directory_page_promises(reference):
    (step, *_) = tiny_run.read_metrics(reference[0])
    fields = "loss loss_by_source lr grad_norm tokens tokens_per_second mfu memory_bytes data_wait_share"
    assert set(fields.split()) <= step.keys()
    assert step["planned_tokens"].keys() == step["realised_tokens"].keys() == {"domain", "general"}
    assert 0 <= step["data_wait_share"] <= 1


def test_realised_tokens_follow_the_plan_to_one_row(reference):
    for step in tiny_run.read_metrics(reference[0]):
        for name, planned in step["planned_tokens"].items():
            assert abs(step["realised_tokens"][name] - planned) <= 2 * 64


def test_evaluation_inside_training_changes_nothing(tiny, reference):
    evaluation = tiny.config["evaluation"] | {"during_training": True, "every_steps": 5}
    tiny_run.launch("torchrun", 2, "train.py", *tiny.arguments(evaluation=evaluation))
    with_evaluation = [record["loss"] for record in tiny_run.read_metrics(tiny.run_dir)]
    records = tiny_run.read_metrics(tiny.run_dir, "evaluation")
    assert [record["step"] for record in records] == [0, 5, 10, 15, 20]
    assert records[-1]["sources"]["domain"]["bits_per_byte"] < records[0]["sources"]["domain"]["bits_per_byte"]
    tiny_run.launch("torchrun", 2, "train.py", *tiny.arguments())
    assert with_evaluation == [record["loss"] for record in tiny_run.read_metrics(tiny.run_dir)]


def test_wandb_keeps_its_records_offline_without_a_key(tiny):
    stage = tiny.config["stages"][0] | {"tokens": "512"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    logging = tiny.config["logging"] | {"wandb": True}
    tiny_run.launch("python", 1, "train.py", *tiny.arguments(stages=[stage], logging=logging), env=environment)
    assert list(Path(tiny.run_dir, "wandb").glob("offline-run-*/*.wandb"))


def start(launcher, processes, *arguments):
    words = tiny_run.command(launcher, processes, "train.py", *arguments)
    return subprocess.Popen(
        words, cwd=tiny_run.ROOT, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0][-4000:]
        assert time.monotonic() < end
        time.sleep(0.02)


def steps_done(run_dir):
    path = Path(run_dir) / "metrics.jsonl"
    if not path.exists():
        return 0
    lines = path.read_text().rpartition("\n")[0].splitlines()
    return max([record["step"] for record in map(json.loads, lines) if record["kind"] == "step"], default=0)


@pytest.mark.distributed
def test_after_kill_9_the_other_engine_continues_the_same_curve(tiny, reference):
    arguments = tiny.arguments(checkpoint={"every_steps": 3})
    run_dir = tiny.run_dir
    process = start("deepspeed", 2, *arguments, "engine.name=zero")
    wait_for(lambda: steps_done(run_dir) >= 8, process)
    for victim in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
        victim.kill()
    process.communicate()
    assert 8 <= steps_done(run_dir) < 20
    tiny_run.launch("torchrun", 2, "train.py", *arguments, "engine.name=fsdp")
    (resume,) = tiny_run.read_metrics(run_dir, "resume")
    assert resume["step"] >= 6
    assert resume["step"] % 3 == 0
    losses = [record["loss"] for record in tiny_run.read_metrics(run_dir)]
    assert losses == pytest.approx(reference[1], rel=1e-5)


def test_ctrl_c_makes_a_checkpoint_at_the_next_step_and_the_job_goes_on_from_it(tiny, reference):
    arguments = tiny.arguments()
    run_dir = tiny.run_dir
    process = start("python", 1, *arguments)
    wait_for(lambda: steps_done(run_dir) >= 3, process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 75, output
    assert "stopped (signal)" in output
    assert "Traceback" not in output
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == [f"step-{steps_done(run_dir):08d}"]
    tiny_run.launch("python", 1, "train.py", *arguments)
    losses = [record["loss"] for record in tiny_run.read_metrics(run_dir)]
    assert losses == pytest.approx(reference[1], rel=1e-6)


def test_a_finished_run_does_nothing_more(tiny, reference):
    run_dir, losses = reference
    done = tiny_run.launch("python", 1, "train.py", f"run_dir={run_dir}")
    assert f"finished: 20 of 20 steps; for the model: python launch/consolidate.py run_dir={run_dir}" in done.stdout
    assert [record["loss"] for record in tiny_run.read_metrics(run_dir)] == losses


def test_consolidate_and_evaluate_end_in_a_model_and_a_report(tiny, reference):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run_dir, _ = reference
    done = tiny_run.launch("python", 1, "consolidate.py", f"run_dir={run_dir}")
    assert "logits equal the training model's" in done.stdout
    assert "peak memory while writing" in done.stdout
    model = AutoModelForCausalLM.from_pretrained(run_dir / "model")
    assert model.num_parameters() > 0
    assert AutoTokenizer.from_pretrained(run_dir / "model").eos_token == "<|end|>"
    tiny_run.launch("python", 1, "evaluate.py", f"run_dir={run_dir}")
    report = json.loads((run_dir / "report.json").read_text())
    assert [source["source"] for source in report["sources"]] == ["domain", "general"]
    assert (run_dir / "report.md").exists()
    assert (run_dir / "report.html").exists()
