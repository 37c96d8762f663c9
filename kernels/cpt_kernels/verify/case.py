"""One request to an operation that is checked, and how its results are compared with float64.

A case knows how to make inputs, how to run the operation by a backend's name, and what plain torch would do in the same
dtype: in 16 bits an error is judged by that of torch itself (the rule of cut-cross-entropy and flash-attention), since
a fixed tolerance is either too wide for small errors or too narrow for large sums.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Inputs = dict[str, Any]
Results = dict[str, Tensor]

FP32_LIMIT = 1e-6
"""Relative error of a result in fp32, in the norm over the tensor."""
TORCH_FACTOR = 1.5
"""Error of a 16-bit result over that of plain torch in the same dtype."""
OUT_OF_BOUNDS = "accesses out of bounds"


@dataclass(frozen=True)
class Case:
    """A request that is checked."""

    operation: str
    name: str
    make: Callable[[torch.dtype, torch.Generator], Inputs]
    """Tensors and options; float tensors that aren't of the dtype asked for stay as they are (tables, weights)."""
    run: Callable[[Inputs, str], Results]
    """The operation by a backend's name; also with every float tensor in float64."""
    plain: Callable[[Inputs], Results]
    """The same by plain torch operations in the dtype of the inputs."""
    trained: tuple[str, ...] = ()
    """Inputs whose gradients are compared."""
    poison: str = ""
    """Input in which NaN and infinity are put: results shall not be finite where those of float64 aren't, and only
    there. Empty: not tried."""
    large: bool = False
    """Belongs to the long part of the checks; too large to be watched address by address."""


@dataclass(frozen=True)
class Finding:
    """One thing that was checked."""

    operation: str
    case: str
    dtype: str
    what: str
    value: float
    limit: float

    @property
    def good(self) -> bool:
        return self.value <= self.limit


def results_and_gradients(case: Case, inputs: Inputs, run: Callable[[Inputs], Results], seed: int = 1) -> Results:
    """The results of `run` and, as `grad NAME`, the gradients of the trained inputs for fixed random cotangents."""
    given = {name: _leaf(value, name in case.trained) for name, value in inputs.items()}
    results = run(given)
    outputs = {name: value for name, value in results.items() if value.requires_grad}
    if not outputs:
        return results
    generator = torch.Generator().manual_seed(seed)
    # A loss is scaled by a power of two, since another factor would round its gradient a second time.
    cotangents = [
        torch.randn(value.shape, generator=generator).to(_main_dtype(inputs)).to(value)
        if value.ndim
        else torch.full_like(value, 2.0)
        for value in outputs.values()
    ]
    gradients = torch.autograd.grad(
        list(outputs.values()), [given[name] for name in case.trained], cotangents, allow_unused=True
    )
    named = {f"grad {name}": g for name, g in zip(case.trained, gradients, strict=True) if g is not None}
    return {name: value.detach() for name, value in results.items()} | named


def _main_dtype(inputs: Inputs) -> torch.dtype:
    """The narrowest dtype among the inputs, or what float64 copies of them had: cotangents are exact in all three."""
    kinds = [value.dtype for value in inputs.values() if isinstance(value, Tensor) and value.is_floating_point()]
    narrow = [kind for kind in kinds if kind in (torch.bfloat16, torch.float16)]
    return narrow[0] if narrow else inputs.get("narrowest", torch.float32)


def _leaf(value: Any, trained: bool) -> Any:
    return value.detach().requires_grad_() if trained and isinstance(value, Tensor) else value


def in_float64(inputs: Inputs) -> Inputs:
    """The same numbers with every float tensor in float64."""
    wide = {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in inputs.items()
    }
    return wide | {"narrowest": _main_dtype(inputs)}


def relative_error(value: Tensor, expected: Tensor) -> float:
    """|value - expected| / |expected| in the Euclidean norm; where nothing is expected |value|. NaN counts as inf."""
    value, expected = value.double(), expected.double()
    finite = torch.isfinite(expected)
    if not bool((torch.isfinite(value) == finite).all()):
        return float("inf")
    difference = (value - expected)[finite].norm()
    size = expected[finite].norm()
    return float(difference / size) if size > 0 else float(difference)


def check_numbers(case: Case, dtype: torch.dtype, device: str = "cpu", backend: str = "triton") -> list[Finding]:
    """Every result and gradient of a case in `dtype` against float64.

    In fp32 also that a second run gives the same bits.
    """
    inputs = {
        name: value.to(device) if isinstance(value, Tensor) and device != "cpu" else value
        for name, value in case.make(dtype, torch.Generator().manual_seed(0)).items()
    }
    exact = results_and_gradients(case, in_float64(inputs), lambda given: case.run(given, "torch"))
    mine = results_and_gradients(case, inputs, lambda given: case.run(given, backend))
    plain = results_and_gradients(case, inputs, case.plain)
    kind = str(dtype).removeprefix("torch.")
    findings = []
    for name, expected in exact.items():
        limit = FP32_LIMIT
        if mine[name].dtype != torch.float32:
            limit = max(limit, TORCH_FACTOR * relative_error(plain[name], expected))
        error = relative_error(mine[name], expected)
        findings.append(Finding(case.operation, case.name, kind, f"error of {name}", error, limit))
    if dtype == torch.float32:  # the order of sums is that of any dtype
        again = results_and_gradients(case, inputs, lambda given: case.run(given, backend))
        changed = sum(not torch.equal(mine[name], again[name]) for name in mine)
        findings.append(Finding(case.operation, case.name, kind, "results that differ in a second run", changed, 0))
    return findings


def check_poison(case: Case, dtype: torch.dtype, backend: str = "triton") -> list[Finding]:
    """That NaN or infinity in an input makes those elements not finite that float64 makes so, and no others."""
    findings = []
    for label, bad in (("NaN", float("nan")), ("inf", float("inf")), ("-inf", float("-inf"))):
        inputs = case.make(dtype, torch.Generator().manual_seed(0))
        poisoned = inputs[case.poison].detach().clone()
        poisoned[tuple(size // 2 for size in poisoned.shape)] = bad
        inputs[case.poison] = poisoned
        exact = results_and_gradients(case, in_float64(inputs), lambda given: case.run(given, "torch"))
        mine = results_and_gradients(case, inputs, lambda given: case.run(given, backend))
        wrong = sum(int((torch.isfinite(mine[name]) != torch.isfinite(exact[name])).sum()) for name in exact)
        kind = str(dtype).removeprefix("torch.")
        what = f"elements wrongly finite or not with {label} in {case.poison}"
        findings.append(Finding(case.operation, case.name, kind, what, wrong, 0))
    return findings


def check_accesses(case: Case, dtype: torch.dtype) -> list[Finding]:
    """Bounds, races and atomics of every launch of a case, forward and backward, in the interpreter."""
    from cpt_kernels.verify.sanitizer import sanitized

    inputs = case.make(dtype, torch.Generator().manual_seed(0))
    with sanitized() as report:
        results_and_gradients(case, inputs, lambda given: case.run(given, "triton"))
    kind = str(dtype).removeprefix("torch.")
    counts = {
        OUT_OF_BOUNDS: report.out_of_bounds,
        "racing addresses": report.races,
        "atomics": report.atomics,
        "missing launches": int(report.launches == 0),
    }
    return [Finding(case.operation, case.name, kind, what, count, 0) for what, count in counts.items()]
