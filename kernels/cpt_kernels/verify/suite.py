"""All cases of all operations, and what is checked of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from triton.runtime.errors import InterpreterError

from cpt_kernels.verify import cases_attention, cases_layers, cases_losses
from cpt_kernels.verify.case import OUT_OF_BOUNDS, Case, Finding, check_accesses, check_numbers, check_poison

CASES: list[Case] = [*cases_layers.CASES, *cases_losses.CASES, *cases_attention.CASES]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def cases_of(operation: str | None = None, large: bool | None = None) -> list[Case]:
    """The cases of an operation or of all; only those that are large, or are not, unless `large` is None."""
    return [case for case in CASES if operation in (None, case.operation) and large in (None, case.large)]


def check(operation: str | None = None, large: bool | None = None) -> Iterator[Finding]:
    """Everything that Triton's interpreter can show of an operation's kernels, or of all.

    An operation that reaches outside its tensors is not run any further, since that would damage this process.
    """
    unsafe: set[str] = set()
    for case in cases_of(operation, large):
        for kind, step in _steps(case):
            if case.operation in unsafe:
                continue
            try:
                findings = step()
            except (RuntimeError, ValueError, InterpreterError) as error:
                findings = [Finding(case.operation, case.name, kind, f"failed: {str(error).splitlines()[0]}", 1, 0)]
            if any(one.what == OUT_OF_BOUNDS and not one.good for one in findings):
                unsafe.add(case.operation)
            yield from findings
    if operation in (None, "document_attention") and not large and "document_attention" not in unsafe:
        yield from cases_attention.check_documents()


def _steps(case: Case) -> Iterator[tuple[str, Callable[[], list[Finding]]]]:
    if not case.large:
        yield "float32", partial(check_accesses, case, torch.float32)
        if case.poison:
            yield "float32", partial(check_poison, case, torch.float32)
    for dtype in DTYPES:
        yield str(dtype).removeprefix("torch."), partial(check_numbers, case, dtype)
