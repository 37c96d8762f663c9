"""The trial of an operation's kernels on the device at hand, before training uses them for the first time.

The interpreter and the compilers show nothing of a miscompiled kernel: with Triton 3.7.1 one of flash-linear-attention
was wrong on Hopper with four warps and right with two (its issue 984). So the small cases run once on the device
against torch, and the verdict is kept for this architecture, this Triton and these sources; so are those of the C
kernels of a CPU, for this compiler. Not measured on a GPU: there the trial has been run with substitutes only.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from cpt_kernels.native import build_key, cache_folder
from cpt_kernels.registry import Spec, backends, unrecorded
from cpt_kernels.triton_support import architecture
from cpt_kernels.verify import cases_attention, cases_layers, cases_losses
from cpt_kernels.verify.case import Finding, check_numbers

logger = logging.getLogger(__name__)

Trial = Callable[[str], Sequence[Finding]]
DTYPES = (torch.float32, torch.bfloat16)
_running: set[str] = set()
_verdicts: dict[str, str | None] = {}


def cache_file() -> Path:
    """Where verdicts are kept."""
    return cache_folder() / "self_test.json"


def source_hash() -> str:
    """Of every source and table of this package, so that a verdict ends with what it was given for."""
    folder = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".py", ".json", ".c", ".h")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def trial_on_device(operation: str) -> list[Finding]:
    """The small cases of an operation on the GPU, in those of fp32 and bf16 that its kernels take there."""
    from cpt_kernels.verify.suite import cases_of

    backend = next(one for one in backends(operation) if one.name == "triton")
    specs = {dtype: Spec("cuda", str(dtype).removeprefix("torch.")) for dtype in DTYPES}
    return [
        finding
        for case in cases_of(operation, large=False)
        for dtype in DTYPES
        if backend.supports(specs[dtype]) is None
        for finding in check_numbers(case, dtype, device="cuda")
    ]


def native_trial(operation: str) -> list[Finding]:
    """The small cases of an operation by its C kernels on this CPU."""
    cases = [*cases_layers.CASES, *cases_losses.CASES, *cases_attention.CASES]
    return [
        finding
        for case in cases
        if case.operation == operation and not case.large and "softcap" not in case.name
        for finding in check_numbers(case, torch.float32, backend="native")
    ]


def native_refusal(operation: str, trial: Trial = native_trial) -> str | None:
    """As `refusal`, for the C kernels on this CPU."""
    return _verdict(operation, f"{operation} cpu native-{build_key()} {source_hash()}", trial)


def refusal(operation: str, trial: Trial = trial_on_device, machine: str | None = None) -> str | None:
    """None where the Triton kernels of `operation` passed their trial on this GPU, else what went wrong.

    The first call runs the trial; later ones, also of other processes, have its verdict.
    """
    version = importlib.metadata.version("triton")
    return _verdict(operation, f"{operation} {machine or architecture()} triton-{version} {source_hash()}", trial)


def _verdict(operation: str, key: str, trial: Trial) -> str | None:
    if operation in _running:
        return None
    if key not in _verdicts:
        kept = _read()
        _verdicts[key] = kept[key] if key in kept else _tried(operation, trial)
        if key not in kept:
            _keep(key, _verdicts[key])
    verdict = _verdicts[key]
    if verdict is not None:
        logger.warning("%s: its kernels failed their trial on this device: %s", operation, verdict)
    return verdict


def _tried(operation: str, trial: Trial) -> str | None:
    _running.add(operation)
    try:
        with unrecorded():
            bad = [finding for finding in trial(operation) if not finding.good]
    except (RuntimeError, ValueError) as error:  # a launch that the driver refuses
        return f"the trial stopped: {str(error).splitlines()[0]}"
    finally:
        _running.discard(operation)
    if not bad:
        return None
    worst = max(bad, key=lambda finding: finding.value)
    return (
        f"{len(bad)} checks of the trial failed, such as {worst.what} ({worst.case}, {worst.dtype}): "
        f"{worst.value:.3g}, at most {worst.limit:.3g}"
    )


def _read() -> dict[str, str | None]:
    try:
        return json.loads(cache_file().read_text())
    except (OSError, ValueError):
        return {}


def _keep(key: str, verdict: str | None) -> None:
    path = cache_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(_read() | {key: verdict}, indent=1))
        temporary.replace(path)
    except OSError as error:
        logger.warning("the verdict of the kernels' trial is not kept: %s", error)
