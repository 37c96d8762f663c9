"""The trial of a kernel on a device: run once, its verdict kept for the same device, Triton and sources."""

import json

import pytest
from cpt_kernels import registry
from cpt_kernels.registry import Backend, KernelRefusedError, Spec, choose, register
from cpt_kernels.verify import self_test
from cpt_kernels.verify.case import Finding

GPU = Spec("cuda", "bfloat16")
GOOD = Finding("op", "case", "float32", "error of y", 1e-7, 1e-6)
BAD = Finding("op", "case", "float32", "error of y", 0.54, 1e-6)


class Trial:
    def __init__(self, *findings, error=None):
        self.findings, self.error, self.runs = findings, error, 0

    def __call__(self, operation):
        self.runs += 1
        if self.error:
            raise self.error
        return self.findings


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CPT_KERNELS_CACHE", str(tmp_path))
    monkeypatch.setattr(self_test, "_verdicts", {})


def test_a_kernel_that_passes_is_tried_once(monkeypatch):
    trial = Trial(GOOD)
    assert self_test.refusal("op", trial, "sm_90") is None
    monkeypatch.setattr(self_test, "_verdicts", {})  # as in another process
    assert self_test.refusal("op", trial, "sm_90") is None
    assert trial.runs == 1


@pytest.mark.parametrize("change", ["machine", "sources"])
def test_another_device_or_other_sources_are_tried_anew(change, monkeypatch):
    trial = Trial(GOOD)
    self_test.refusal("op", trial, "sm_90")
    if change == "sources":
        monkeypatch.setattr(self_test, "source_hash", lambda: "other")
    self_test.refusal("op", trial, "sm_80" if change == "machine" else "sm_90")
    assert trial.runs == 2


def test_a_wrong_result_and_a_launch_that_fails_are_verdicts_with_their_reason():
    assert "error of y (case, float32): 0.54" in self_test.refusal("wrong", Trial(GOOD, BAD), "sm_90")
    failing = Trial(error=RuntimeError("out of resource: shared memory\nmore"))
    assert self_test.refusal("failing", failing, "sm_90") == "the trial stopped: out of resource: shared memory"
    kept = json.loads(self_test.cache_file().read_text())
    assert sorted(key.split()[0] for key in kept) == ["failing", "wrong"]


def test_what_a_trial_chooses_is_no_choice_of_the_run():
    def trial(operation):
        choose("rms_norm", "torch", Spec("cpu", "float32", frozenset({"only in a trial"})))
        return [GOOD]

    before = registry.chosen()
    self_test.refusal("op", trial, "sm_90")
    assert registry.chosen() == before


@pytest.fixture
def operation(monkeypatch):
    """Two backends; the kernels of the first failed their trial."""
    monkeypatch.setattr(registry, "_backends", {})
    monkeypatch.setattr(registry, "_chosen", {})
    failed = Trial(BAD)
    vetted = Backend(
        "triton", lambda spec: None, lambda: "triton", vetted=lambda spec: self_test.refusal("op", failed, "sm_90")
    )
    register("op", vetted)
    register("op", Backend("torch", lambda spec: None, lambda: "torch"))
    return "op"


def test_a_failed_trial_makes_auto_pass_on_with_a_warning(operation, caplog):
    assert choose(operation, "auto", GPU).name == "torch"
    assert "its kernels failed their trial on this device" in caplog.text


def test_a_failed_trial_is_an_error_where_the_kernel_is_asked_for(operation):
    with pytest.raises(KernelRefusedError, match="1 checks of the trial failed"):
        choose(operation, "triton", GPU)
    assert choose(operation, "triton", GPU, strict=False).name == "torch"
