"""Measures launch settings on the GPU at hand and writes them into the launch table under its architecture.

For each kernel the candidates vary warps, stages and block sizes around the row of the table; a candidate is taken if
it is right (by the small cases) and fastest. Training never tunes: the table is read, so two runs launch the same
programs. Not measured on a GPU.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from cpt_kernels.triton_support import DEFAULT, TABLE, architecture, interpreting, launch_table
from cpt_kernels.verify.case import Case, check_numbers, results_and_gradients
from cpt_kernels.workloads import workload

REPEATS = 20
SCALES = (0.5, 1, 2)


def why_not() -> str | None:
    """None where there is a GPU to tune for, else the reason."""
    if interpreting():
        return "TRITON_INTERPRET=1 is set, so nothing runs on the GPU; unset it"
    if not torch.cuda.is_available():
        return "there is no GPU here; launch settings can be measured on one only, the table stays as it is"
    return None


def candidates(row: dict[str, int]) -> Iterator[dict[str, int]]:
    """Rows around one of the table: every block size and the warps halved, kept and doubled, one to three stages."""
    varied = [name for name in row if name.startswith("BLOCK") or name == "num_warps"]
    for factors in itertools.product(SCALES, repeat=len(varied)):
        for stages in (1, 2, 3):
            changed = {name: int(row[name] * factor) for name, factor in zip(varied, factors, strict=True)}
            if changed["num_warps"] in (1, 2, 4, 8, 16, 32) and all(value >= 1 for value in changed.values()):
                yield {**row, **changed, "num_stages": stages}


def milliseconds(call: Callable[[], object]) -> float:
    """Median device time of a call."""
    call()
    times = []
    for _ in range(REPEATS):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop))
    return sorted(times)[REPEATS // 2]


def tune(kernel: str | None) -> int:
    """Tune kernels whose name contains `kernel`, or all; gives the exit code."""
    table = json.loads(TABLE.read_text())
    rows = table.setdefault(architecture(), {})
    for name in table[DEFAULT]:
        if kernel and kernel not in name:
            continue
        found = []
        for row in rows.get(name) or table[DEFAULT][name]:
            found.append(best_row(name, dict(row), workload(name, row["up_to"])))
        rows[name] = found
        print(f"{name} on {architecture()}: {rows[name]}", flush=True)
        TABLE.write_text(json.dumps(table, indent=2) + "\n")
    return 0


def best_row(kernel: str, row: dict[str, int], case: Case) -> dict[str, int]:
    """The fastest right candidate for one row of the table."""
    timed: list[tuple[float, int, dict[str, int]]] = []
    for candidate in candidates(row):
        with only_row(kernel, candidate):
            try:
                if all(one.good for one in check_numbers(case, torch.bfloat16, device="cuda")):
                    timed.append((_time(case), len(timed), candidate))
            except RuntimeError:  # a launch that doesn't fit this GPU
                continue
    return min(timed)[2] if timed else row


def _time(case: Case) -> float:
    inputs = {
        name: value.cuda() if isinstance(value, torch.Tensor) else value
        for name, value in case.make(torch.bfloat16, torch.Generator().manual_seed(0)).items()
    }
    run = case.run
    return milliseconds(lambda: results_and_gradients(case, inputs, lambda given: run(given, "triton")))


@contextmanager
def only_row(kernel: str, row: dict[str, int]) -> Iterator[None]:
    """Inside the table has only this row for a kernel on this GPU."""
    rows = launch_table().setdefault(architecture(), {})
    before = rows.get(kernel)
    rows[kernel] = [row]
    try:
        yield
    finally:
        rows.pop(kernel)
        if before is not None:
            rows[kernel] = before
