"""Time and memory of every operation on a GPU, by each backend that can run: not yet run on any GPU.

    python benchmarks/gpu_kernels.py            # prints a table, writes gpu_kernels.json
    python benchmarks/gpu_kernels.py --operation rms_norm

Each operation makes a request of training's size forward and backward, first compared with torch in float32, then timed
by device events: median of 20 after a first call. The bound is that of the data sheet (`python -m cpt_kernels bounds`),
for the GPUs that are listed there. Without a GPU it says so and ends with exit code 2.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from cpt_kernels import KernelRefusedError, Spec, backends, choose
from cpt_kernels.triton_support import architecture
from cpt_kernels.tune import milliseconds, why_not
from cpt_kernels.verify.case import Case, check_numbers, results_and_gradients
from cpt_kernels.workloads import workload

# One kernel of each operation, and the row of the launch table that the request takes.
KERNELS = {
    "rms_norm": ("rms_norm_forward", 4096),
    "swiglu": ("swiglu_forward", 0),
    "rope": ("rope_turn", 8192),
    "cross_entropy": ("cross_entropy_forward", 0),
    "linear_kl": ("kl_rows", 0),
    "document_attention": ("attention_forward", 128),
    "adamw": ("adamw_step", 0),
}


def measured(case: Case, backend: str) -> dict[str, float]:
    """Milliseconds and peak bytes over the inputs of one request, forward and backward."""
    dtype = torch.bfloat16
    inputs = {
        name: value.cuda() if isinstance(value, torch.Tensor) else value
        for name, value in case.make(dtype, torch.Generator().manual_seed(0)).items()
    }

    def call() -> object:
        return results_and_gradients(case, inputs, lambda given: case.run(given, backend))

    call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    peak = torch.cuda.max_memory_allocated() - before
    return {"milliseconds": milliseconds(call), "peak_bytes": peak}


def main() -> int:
    """Print the table; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--operation", choices=KERNELS)
    parser.add_argument("--out", type=Path, default=Path("gpu_kernels.json"))
    given = parser.parse_args()
    if (reason := why_not()) is not None:
        print(f"gpu_kernels: {reason}; not yet run", file=sys.stderr)
        return 2
    found = []
    print("| operation | backend | ms | peak MiB | wrong figures |\n|---|---|---|---|---|")
    for operation, (kernel, size) in KERNELS.items():
        if given.operation not in (None, operation):
            continue
        case = workload(kernel, size)
        for backend in backends(case.operation):
            try:
                # The optimizer's step is for fp32 weights, with gradients in bf16.
                spec = Spec("cuda", "float32" if operation == "adamw" else "bfloat16")
                choose(case.operation, backend.name, spec, record=False)
            except KernelRefusedError as error:
                print(f"| {case.operation} | {backend.name} | – | – | {error} |")
                continue
            wrong = [one.what for one in check_numbers(case, torch.bfloat16, "cuda", backend.name) if not one.good]
            record = {"operation": case.operation, "backend": backend.name, **measured(case, backend.name)}
            found.append(record | {"wrong": wrong, "request": case.name, "gpu": architecture()})
            mebibytes = record["peak_bytes"] / 2**20
            print(
                f"| {case.operation} | {backend.name} | {record['milliseconds']:.3f} | {mebibytes:.0f} "
                f"| {', '.join(wrong) or 'none'} |"
            )
    given.out.write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
