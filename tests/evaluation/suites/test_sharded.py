"""What is asked of a model in training: the same numbers however it is sharded, and the same training without it."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.evaluation.suites.small import suite_file, write_rows
from tests.helpers import tiny_run

JOBS = {
    "one": (1, {"name": "fsdp"}, 10),
    "fsdp 2": (2, {"name": "fsdp"}, 10),
    "fsdp 2 unasked": (2, {"name": "fsdp"}, 0),
    "zero3 2": (2, {"name": "zero", "zero_stage": 3}, 10),
    "zero3 2 unasked": (2, {"name": "zero", "zero_stage": 3}, 0),
}
GATE = {
    "margins": {
        "held_out": {"macro": 0.1},
        "suites": {"choices": 0.1, "cloze": "non_inferior"},
        "positions": {"10-90": 0.1},
        "long_tasks": {"passkey/90": 0.1},
    },
    "against": "run_start",
    "on_fail": "continue",
    "on_undecided": "continue",
}
pytestmark = [pytest.mark.distributed, pytest.mark.timeout(400)]


def questions_in(folder):
    """Suites and facts in the words of the tiny run, an odd number of each."""
    words = tiny_run.WORDS
    rows = [{"query": " ".join(words[n : n + 5]), "choices": words[n + 5 : n + 9], "gold": n % 4} for n in range(23)]
    cloze = [{"query": " ".join(words[n : n + 9]), "a": f"{words[n]} {words[n + 20]}"} for n in range(7)]
    texts = {"kind": "generation", "max_new_tokens": 5, "choices": None, "answer": "a"}
    probe = {"form": "qa", "direction": "forward", "prompt": f"{words[1]} {words[2]}", "answer": words[3]}
    facts = [{"id": str(n), "kind": ("trained", "control")[n % 2], "probes": [probe] * (1 + n % 2)} for n in range(5)]
    return {
        "run": [
            str(suite_file(folder, "choices", rows=rows)),
            str(suite_file(folder, "cloze", rows=cloze, kind="cloze", choices=None, answer="a")),
            str(suite_file(folder, "texts", rows=cloze, **texts)),
        ],
        "probes": [str(write_rows(folder / "facts.jsonl", facts))],
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    base = tiny_run.build(folder)
    questions = questions_in(folder)
    texts = [{"text": " ".join(tiny_run.WORDS[n : n + 100])} for n in range(0, 250, 50)]
    documents = write_rows(folder / "long.jsonl", texts)
    long_context = {"documents": [str(documents)], "haystack": "noise", "items": 3}
    for world_size in (1, 2):
        jobs = []
        for name, (size, engine, every) in JOBS.items():
            if size == world_size:
                config = copy.deepcopy(base) | {"run_dir": str(folder / name)}
                config["engine"] = config["engine"] | engine
                config["suites"] = questions | {"every_steps": every}
                config["evaluation"] |= {"during_training": every > 0, "every_steps": every, "max_tokens": "600"}
                if every:
                    config["stages"][0]["gate"] = GATE
                    config["evaluation"]["long_context"] = long_context
                jobs.append({"config": config})
        path = folder / f"jobs-{world_size}.json"
        path.write_text(json.dumps(jobs))
        words = [str(Path(sys.executable).parent / "torchrun"), "--nnodes", "1", "--rdzv-backend", "c10d"]
        words += ["--rdzv-endpoint", "localhost:0", "--nproc-per-node", str(world_size)]
        done = subprocess.run(
            [*words, "-m", "tests.helpers.worker", str(path)],
            cwd=tiny_run.ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=560,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return folder


def asked(run_dir):
    return [
        {"step": record["step"], "suites": record["suites"], "probes": list(record["probes"].values())}
        for record in tiny_run.read_metrics(run_dir, "suites")
    ]


def numbers(value):
    """All numbers within a record, in order."""
    if isinstance(value, dict):
        return [number for one in value.values() for number in numbers(one)]
    if isinstance(value, list):
        return [number for one in value for number in numbers(one)]
    return [value] if isinstance(value, (int, float)) else []


@pytest.mark.parametrize("name", ["fsdp 2", "zero3 2"])
def test_a_sharded_model_gives_the_answers_of_one_process(runs, name):
    ours, alone = asked(runs / name), asked(runs / "one")
    assert [record["step"] for record in alone] == [0, 10, 20]
    assert list(alone[0]["suites"]) == ["choices", "cloze", "texts"]
    assert alone[0] != {**alone[2], "step": 0}
    assert len(numbers(alone)) > 40
    assert numbers(ours[0]) == pytest.approx(numbers(alone[0]), rel=1e-6, abs=1e-6)
    assert numbers(ours) == pytest.approx(numbers(alone), rel=1e-4)


@pytest.mark.parametrize("name", ["fsdp 2", "zero3 2"])
def test_a_sharded_model_has_the_bits_per_byte_of_one_process(runs, name):
    ours, alone = (
        [
            [record["step"], *(source["bits_per_byte"] for source in record["sources"].values())]
            for record in tiny_run.read_metrics(runs / which, "evaluation")
        ]
        for which in (name, "one")
    )
    assert [step for step, *_ in alone] == [0, 10, 20]
    assert ours[0] == pytest.approx(alone[0], rel=1e-6)  # the same weights; later ones differ by the order of sums
    assert ours == [pytest.approx(one, rel=1e-4) for one in alone]
    assert alone[2][1] < alone[0][1] - 0.1


@pytest.mark.parametrize("name", ["fsdp 2", "zero3 2"])
def test_a_gate_measures_a_sharded_model_as_one_process_does(runs, name):
    ours, alone = (tiny_run.read_metrics(runs / which, "gate")[0]["measured"] for which in (name, "one"))
    assert [one["name"] for one in alone] == ["macro", "choices", "cloze", "10-90", "passkey/90"]
    assert all(one["difference"] for one in alone if one["name"] in ("macro", "10-90"))
    assert [one["verdict"] for one in ours] == [one["verdict"] for one in alone]
    assert numbers(ours) == pytest.approx(numbers(alone), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("name", ["fsdp 2", "zero3 2"])
def test_asking_leaves_the_training_bit_for_bit_as_it_was(runs, name):
    losses, unasked = (
        [record["loss"] for record in tiny_run.read_metrics(runs / which)] for which in (name, f"{name} unasked")
    )
    assert len(losses) == 20
    assert losses == unasked
    assert asked(runs / f"{name} unasked") == []
    assert tiny_run.read_metrics(runs / f"{name} unasked", "evaluation") == []
