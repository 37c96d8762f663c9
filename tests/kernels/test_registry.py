"""The choice of a backend is explicit, explained and listed."""

import pytest
from cpt_kernels import registry
from cpt_kernels.registry import Backend, KernelRefusedError, Spec, choose, chosen, register

CPU = Spec("cpu", "float32")


@pytest.fixture
def operation(monkeypatch):
    """An operation whose first backend needs a GPU and whose second takes everything but softcap."""
    monkeypatch.setattr(registry, "_backends", {})
    monkeypatch.setattr(registry, "_chosen", {})
    register("op", Backend("fast", lambda spec: None if spec.device == "cuda" else "it needs a GPU", lambda: "fast"))
    register(
        "op", Backend("any", lambda spec: "it has no softcap" if "softcap" in spec.features else None, lambda: "any")
    )
    return "op"


def test_auto_takes_the_first_backend_that_can_run(operation):
    assert choose(operation, "auto", CPU).name == "any"
    assert choose(operation, "auto", Spec("cuda", "bfloat16")).name == "fast"


def test_a_wanted_backend_is_never_replaced(operation):
    with pytest.raises(KernelRefusedError, match="it needs a GPU"):
        choose(operation, "fast", CPU)


def test_auto_names_every_reason_where_nothing_can_run(operation):
    with pytest.raises(KernelRefusedError, match="fast: it needs a GPU; any: it has no softcap"):
        choose(operation, "auto", Spec("cpu", "float32", frozenset({"softcap"})))


def test_unknown_names_are_refused_with_the_known_ones(operation):
    with pytest.raises(KernelRefusedError, match="no backend 'fats'; known: auto, fast, any"):
        choose(operation, "fats", CPU)


def test_a_name_cannot_be_registered_twice(operation):
    with pytest.raises(ValueError, match="registered already"):
        register(operation, Backend("fast", lambda spec: None, lambda: None))


def test_choices_are_logged_once_and_listed(operation, caplog):
    with caplog.at_level("INFO"):
        choose(operation, "auto", CPU)
        choose(operation, "auto", CPU)
    assert [record.message for record in caplog.records] == ["op on cpu float32: any; not fast: it needs a GPU"]
    assert chosen() == [
        {"operation": "op", "wanted": "auto", "backend": "any", "device": "cpu", "dtype": "float32", "features": ""}
    ]
