"""Where Triton kernels can run, and with which launch settings.

The settings are a table that is committed, `launch_table.json`, by kernel, size and architecture; nothing is tuned
while a program runs (an autotuner cannot run without a GPU, and makes two runs differ). `python -m cpt_kernels tune`
writes the rows of an architecture. Kernels themselves lie in `cpt_kernels.jit`, which imports Triton; this module does
not.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cpt_kernels.registry import Backend, Spec

TABLE = Path(__file__).with_name("launch_table.json")
DEFAULT = "default"
DTYPES = ("float32", "bfloat16", "float16")


def interpreting() -> bool:
    """Whether kernels of this process run in Triton's interpreter, on the CPU: TRITON_INTERPRET=1 at the start."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def triton_supports(spec: Spec) -> str | None:
    """None where the Triton kernels can run `spec`, else the reason."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed (pip install 'cpt_dist[triton]')"
    if spec.device == "cpu" and not interpreting():
        return "Triton needs a GPU; on a CPU it runs in its interpreter only (TRITON_INTERPRET=1), which is for checks"
    if spec.device not in ("cpu", "cuda"):
        return f"the Triton kernels run on cuda (or rocm), not on {spec.device}"
    if spec.device == "cuda" and interpreting():
        return "TRITON_INTERPRET=1 is set, so nothing is compiled for the GPU; unset it"
    if spec.dtype not in DTYPES:
        return f"the Triton kernels take {', '.join(DTYPES)}, not {spec.dtype}"
    return next((f"the Triton kernel has no {name}" for name in sorted(spec.features) if name.startswith("no_")), None)


def only_on_a_gpu(spec: Spec) -> str | None:
    """Why `auto` takes no Triton kernel on a CPU: the interpreter is slower than torch by orders of magnitude."""
    return "the interpreter is for checks, not for speed" if spec.device == "cpu" else None


def triton_backend(
    operation: str, function: Callable[..., Any], supports: Callable[[Spec], str | None] | None = None
) -> Backend:
    """The Triton backend of an operation; `supports` adds refusals of its own to the general ones."""

    def all_supports(spec: Spec) -> str | None:
        return triton_supports(spec) or (supports(spec) if supports is not None else None)

    def vetted(spec: Spec) -> str | None:
        if spec.device != "cuda":
            return None
        from cpt_kernels.verify.self_test import refusal

        return refusal(operation)

    return Backend("triton", all_supports, function, only_on_a_gpu, vetted)


@functools.cache
def architecture() -> str:
    """Name of this machine's GPU architecture in the table, such as sm_90 or gfx942; cpu without one."""
    if not torch.cuda.is_available():
        return "cpu"
    if torch.version.hip is not None:
        return str(torch.cuda.get_device_properties(0).gcnArchName).split(":")[0]
    return "sm_{}{}".format(*torch.cuda.get_device_capability())


@functools.cache
def launch_table() -> dict[str, dict[str, list[dict[str, int]]]]:
    """The committed table: architecture -> kernel -> rows of rising `up_to`."""
    return json.loads(TABLE.read_text())


def launch_settings(kernel: str, size: int, arch: str | None = None) -> dict[str, int]:
    """Keyword arguments of a launch: block sizes, num_warps, num_stages.

    `kernel` is the name in the table, `size` what its rows are sorted by (columns, or the dimensions of a head).
    Raises KeyError where the table has no row for the kernel.
    """
    table = launch_table()
    rows = table.get(arch or architecture(), {}).get(kernel) or table[DEFAULT][kernel]
    row = next((row for row in rows if size <= row["up_to"]), rows[-1])
    return {name: value for name, value in row.items() if name != "up_to"}


def next_power_of_2(number: int) -> int:
    """The smallest power of two that is at least `number`."""
    return 1 << max(number - 1, 0).bit_length()
