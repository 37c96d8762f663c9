"""Kernels of other packages run where they are asked for and installed, and nowhere else."""

import sys
import types

import pytest
import torch
from cpt_kernels import libraries
from cpt_kernels.linear_cross_entropy import reference
from cpt_kernels.registry import KernelRefusedError, Spec, backends, choose

GPU = Spec("cuda", "bfloat16")


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(libraries.importlib.util, "find_spec", lambda name: object())


@pytest.mark.parametrize(
    ("operation", "name"), [("linear_cross_entropy", "cut_cross_entropy"), ("rms_norm", "liger"), ("swiglu", "liger")]
)
def test_a_library_is_never_taken_by_auto_and_refused_where_it_is_missing(operation, name, monkeypatch):
    backend = next(one for one in backends(operation) if one.name == name)
    assert "asked for by name" in backend.on_request(GPU)
    with pytest.raises(KernelRefusedError, match="on a GPU only, not on cpu"):
        choose(operation, name, Spec("cpu", "float32"))
    monkeypatch.setattr(libraries.importlib.util, "find_spec", lambda name: None)
    assert "is not installed" in backend.supports(GPU)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("feature", ["lse", "z_loss", "logit_scale"])
def test_what_a_library_lacks_is_its_refusal(feature):
    backend = next(one for one in backends("linear_cross_entropy") if one.name == "cut_cross_entropy")
    assert backend.supports(GPU) is None
    assert "has no" in backend.supports(Spec("cuda", "bfloat16", frozenset({feature})))


def test_the_loss_of_a_library_is_weighted_and_divided_as_ours(monkeypatch):
    def nll_of(e, c, targets, bias, ignore_index, softcap, reduction, impl):
        assert (reduction, impl) == ("none", "cce_kahan_full_c")
        return torch.nn.functional.cross_entropy(e @ c.T, targets, ignore_index=ignore_index, reduction="none")

    monkeypatch.setitem(sys.modules, "cut_cross_entropy", types.SimpleNamespace(linear_cross_entropy=nll_of))
    hidden, weight, labels = torch.randn(4, 3), torch.randn(5, 3), torch.tensor([0, -100, 4, 2])
    weights = torch.tensor([1.0, 1.0, 0.5, 2.0])
    loss, nll, _ = libraries._cut_cross_entropy(hidden, weight, labels, 3.0, None, None, 1.0, weights, 0.0, 1, -100)
    expected, expected_nll = reference(hidden, weight, labels, divisor=3.0, label_weights=weights)
    assert torch.allclose(loss.double(), expected)
    assert torch.allclose(nll.double(), expected_nll)
