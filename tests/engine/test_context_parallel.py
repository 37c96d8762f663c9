"""A row that several ranks share has the loss and the gradients of one process, packed documents kept apart."""

import copy
import json

import pytest
import torch

from cpt_dist.checkpoint.dcp import SafeReader
from tests.engine.conftest import run_jobs, torchrun
from tests.helpers import models, tiny_run

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def errors(tmp_path_factory):
    """Kind -> case -> largest relative error against one process."""
    folder = tmp_path_factory.mktemp("context")
    models.tiny_llama(folder / "llama", num_attention_heads=8, num_key_value_heads=4)
    models.tiny_mistral(folder / "mistral")
    models.tiny_gpt2(folder / "gpt2")
    torchrun(4, "tests.helpers.context_worker", folder)
    return json.loads((folder / "errors.json").read_text())


@pytest.mark.parametrize(("kind", "most"), [("attention", 1e-5), ("engines", 1e-5), ("other documents", 0.0)])
def test_a_shared_row_is_computed_as_on_one_process_and_no_attention_crosses_documents(errors, kind, most):
    assert len(errors[kind]) == {"attention": 30, "engines": 18, "other documents": 6}[kind]
    assert {case: error for case, error in errors[kind].items() if not error <= most} == {}


BAD_STEP = 6


@pytest.fixture(scope="module")
def staged(tmp_path_factory):
    """(run directory on one process, on two that share the rows of the second stage only).

    In each the last rank finds no number in one step of the second stage.
    """
    folder = tmp_path_factory.mktemp("staged")
    base = tiny_run.build(folder)
    (first,) = base["stages"]
    first |= {"tokens": "1024"}
    base["stages"] = [first, first | {"name": "longer", "seq_len": 128, "batch_tokens": "512", "tokens": "1536"}]
    base["evaluation"] |= {"during_training": True, "every_steps": 3}
    base["checkpoint"] = {"every_steps": 0, "keep_last": 0}
    jobs, dirs = [], []
    for size in (1, 2):
        config = copy.deepcopy(base) | {"run_dir": str(folder / f"run {size}")}
        config["stages"][1]["context_parallel"] = size
        jobs.append((size, {"config": config, "faults": {str(BAD_STEP): {"rank": size - 1, "nll": "nan"}}}))
        dirs.append(folder / f"run {size}")
    run_jobs(folder, jobs)
    return dirs


SHOWN = ("loss", "grad_norm", "target_tokens", "tokens", "realised_tokens")


def test_a_stage_that_shares_rows_records_what_one_process_does(staged):
    ours, theirs = (tiny_run.read_metrics(run_dir) for run_dir in reversed(staged))
    assert [record["step"] for record in ours] == [1, 2, 3, 4, 5, 7]
    for key in SHOWN:
        for one, two in zip(ours, theirs, strict=True):
            assert one[key] == pytest.approx(two[key], rel=1e-5), key


def test_a_step_without_a_number_is_skipped_as_on_one_process(staged):
    (theirs,), (ours,) = (
        [json.loads(line) for line in (run_dir / "ledger.jsonl").read_text().splitlines()] for run_dir in staged
    )
    assert ours["evidence"]["step"] == BAD_STEP
    assert ours["evidence"]["documents"] == theirs["evidence"]["documents"]
    assert {**ours, "evidence": None} == {**theirs, "evidence": None}


def test_evaluation_and_probe_of_such_a_run_are_those_of_one_process(staged):
    ours, theirs = (tiny_run.read_metrics(run_dir, "evaluation") for run_dir in reversed(staged))
    assert [record["step"] for record in ours] == [record["step"] for record in theirs] == [0, 3, 6, 7]
    for one, two in zip(ours, theirs, strict=True):
        for source in two["sources"]:
            assert one["sources"][source] == pytest.approx(two["sources"][source], rel=1e-5)
    probes = [next((run_dir / "checkpoints").glob("*/probe.safetensors")) for run_dir in staged]
    from safetensors.torch import load_file

    for key, logits in load_file(probes[0]).items():
        torch.testing.assert_close(load_file(probes[1])[key], logits, rtol=1e-4, atol=1e-4)


def test_weights_of_such_a_run_are_those_of_one_process(staged):
    readers = [SafeReader(next((run_dir / "checkpoints").glob("step-*")) / "state") for run_dir in staged]
    for name in readers[0].tensor_shapes():
        if name.startswith("model."):
            one, two = (reader.tensor(name) for reader in readers)
            assert (one - two).norm() <= 1e-4 * one.norm(), name
