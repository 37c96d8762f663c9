"""Compiling kernels for GPUs that are not here, and judging what the compilers made of them.

Triton's wheel brings the compilers for NVIDIA and AMD, so registers, spills, shared memory and matrix instructions of
every kernel can be counted on any machine. What is kept in `figures.json` is the best that was seen: a spill, shared
memory over the target's limit, matrix instructions that are missing, tf32 where fp32 was asked for, or a figure that
is worse than the kept one is red. A miscompiled kernel isn't found this way; `self_test` is for that.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cpt_kernels.verify.builds import Build

FIGURES = Path(__file__).with_name("figures.json")
SHARED_LIMIT_BYTES = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "gfx942": 64 * 1024}
"""Shared memory (LDS) that one program may have: CUDA programming guide, compute capabilities 8.0 and 9.0; CDNA 3."""


@dataclass(frozen=True)
class Figures:
    """What a compiler made of a build."""

    registers: int
    """Of a thread; on AMD vector registers."""
    spilled_bytes: int
    """Stack of a thread in memory."""
    shared_bytes: int
    matrix_instructions: int
    """mma.sync and wgmma in PTX, mfma on AMD."""
    tf32_instructions: int
    """Matrix instructions that round fp32 operands to 10 bits."""


def compiled(build: Build, target: str, constants: dict[str, Any] | None = None) -> Figures:
    """Compile a build for a target; `constants` replace some of its own.

    Raises RuntimeError in a process whose kernels are interpreted.
    """
    import triton
    from triton.compiler import ASTSource

    kernel = getattr(importlib.import_module(f"cpt_kernels.jit.{build.module}"), build.kernel)
    if not hasattr(kernel, "arg_names") or type(kernel).__name__ == "InterpretedFunction":
        raise RuntimeError("kernels of this process are interpreted; unset TRITON_INTERPRET to compile them")
    settings = build.settings(target)
    options = {name: settings.pop(name) for name in ("num_warps", "num_stages")}
    values = {**build.constants, **settings, **(constants or {})}
    names = list(kernel.arg_names)
    types = build.types(names, values)
    # As a launch would see pointers, strides and sizes of models: loads are vectorised for multiples of 16 only.
    aligned = [name for name in names if types[name].startswith("*") or (types[name] == "i32" and _is_aligned(name))]
    source = ASTSource(
        fn=kernel,
        signature=types,
        constexprs={(names.index(name),): value for name, value in values.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    result = triton.compile(source, target=_gpu(target), options=options)
    shared = int(result.metadata.shared)
    if target.startswith("gfx"):
        return _amd(result.asm["amdgcn"], shared)
    return _nvidia(result.asm["cubin"], result.asm["ptx"], shared)


def _is_aligned(name: str) -> bool:
    return name.endswith("_stride") or name in ("num_columns", "num_words")


def _gpu(target: str) -> Any:
    from triton.backends.compiler import GPUTarget

    if target.startswith("gfx"):
        return GPUTarget("hip", target, 64)
    return GPUTarget("cuda", int(target.removeprefix("sm_")), 32)


def _nvidia(cubin: bytes, ptx: str, shared: int) -> Figures:
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        # The driver counts registers only when it loads a kernel; without one the cubin itself says them.
        done = subprocess.run(
            [tools / "cuobjdump", "-res-usage", file.name], capture_output=True, text=True, check=False
        )
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", done.stdout + done.stderr)
    if found is None:
        raise RuntimeError(f"cuobjdump says nothing of registers: {(done.stdout + done.stderr)[:200]}")
    registers, stack, local = map(int, found.groups())
    products = re.findall(r"^.*\b(?:mma\.sync|wgmma\.mma_async)\b.*$", ptx, re.MULTILINE)
    return Figures(registers, stack + local, shared, len(products), sum("tf32" in line for line in products))


def _amd(assembly: str, shared: int) -> Figures:
    def number(key: str) -> int:
        found = re.search(rf"\.{key}:\s+(\d+)", assembly)
        return int(found.group(1)) if found else 0

    products = re.findall(r"^.*\bv_mfma.*$", assembly, re.MULTILINE)
    spilled = max(number("private_segment_fixed_size"), 4 * number("vgpr_spill_count"))
    return Figures(number("vgpr_count"), spilled, shared, len(products), sum("xf32" in line for line in products))


def key(build: Build, target: str) -> str:
    """Name of a build for a target in the kept figures."""
    return f"{build.label} | {target}"


def compile_all(builds: Iterable[Build], targets: Iterable[str]) -> Iterator[tuple[Build, str, Figures]]:
    """Every build for every target; the compilers' caches go to a folder that is deleted."""
    targets = list(targets)
    with tempfile.TemporaryDirectory() as folder:
        before = os.environ.get("TRITON_CACHE_DIR")
        os.environ["TRITON_CACHE_DIR"] = folder
        try:
            for build in builds:
                for target in targets:
                    yield build, target, compiled(build, target)
        finally:
            if before is None:
                del os.environ["TRITON_CACHE_DIR"]
            else:
                os.environ["TRITON_CACHE_DIR"] = before


def kept_figures() -> dict[str, Figures]:
    """The figures of `figures.json`; empty where there is none, or of another Triton."""
    if not FIGURES.exists():
        return {}
    kept = json.loads(FIGURES.read_text())
    if kept["triton"] != importlib.metadata.version("triton"):
        return {}
    return {name: Figures(**figures) for name, figures in kept["figures"].items()}


def write_figures(figures: dict[str, Figures]) -> None:
    """Keep these figures."""
    content = {
        "triton": importlib.metadata.version("triton"),
        "figures": {name: asdict(one) for name, one in figures.items()},
    }
    FIGURES.write_text(json.dumps(content, indent=1) + "\n")


def problems(build: Build, target: str, found: Figures, kept: Figures | None) -> list[str]:
    """What is wrong with the figures of a build, one line each; `kept` is None where there are none to compare with."""
    wrong = []
    if found.spilled_bytes:
        wrong.append(
            f"spills {found.spilled_bytes} bytes a thread; use more warps or smaller blocks in the launch table"
        )
    limit = SHARED_LIMIT_BYTES[target]
    if found.shared_bytes > limit:
        wrong.append(f"needs {found.shared_bytes} bytes of shared memory, the target has {limit}; use smaller blocks")
    if build.products and not found.matrix_instructions:
        wrong.append("has no matrix instructions, so its products run on the ordinary units")
    if found.tf32_instructions:
        wrong.append(f"rounds fp32 operands in {found.tf32_instructions} matrix instructions; say input_precision")
    if kept is not None:
        for name in ("registers", "shared_bytes"):
            if getattr(found, name) > getattr(kept, name):
                wrong.append(f"{name} rose from {getattr(kept, name)} to {getattr(found, name)}")
        if found.matrix_instructions < kept.matrix_instructions:
            wrong.append(f"matrix instructions fell from {kept.matrix_instructions} to {found.matrix_instructions}")
    return [f"{key(build, target)}: {line}" for line in wrong]
