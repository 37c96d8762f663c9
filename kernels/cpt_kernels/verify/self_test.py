"""The trial of an operation's Triton kernels on the GPU at hand, before training uses them for the first time.

The interpreter and the compilers show nothing of a miscompiled kernel: with Triton 3.7.1 one of flash-linear-attention
was wrong on Hopper with four warps and right with two (its issue 984). So the small cases run once on the device
against torch, and the verdict is kept for this architecture, this Triton and these sources. Not measured on a GPU: the
trial itself has been run with substitutes only.
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

from cpt_kernels.registry import Spec, backends, unrecorded
from cpt_kernels.triton_support import architecture
from cpt_kernels.verify.case import Finding, check_numbers

logger = logging.getLogger(__name__)

Trial = Callable[[str], Sequence[Finding]]
DTYPES = (torch.float32, torch.bfloat16)
_running: set[str] = set()
_verdicts: dict[str, str | None] = {}


def cache_file() -> Path:
    """Where verdicts are kept: CPT_KERNELS_CACHE, by default ~/.cache/cpt_kernels."""
    folder = os.environ.get("CPT_KERNELS_CACHE")
    return (Path(folder) if folder else Path.home() / ".cache" / "cpt_kernels") / "self_test.json"


def source_hash() -> str:
    """Of every source and table of this package, so that a verdict ends with what it was given for."""
    folder = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".py", ".json")):
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


def refusal(operation: str, trial: Trial = trial_on_device, machine: str | None = None) -> str | None:
    """None where the kernels of `operation` passed their trial on this GPU, else what went wrong.

    The first call runs the trial; later ones, also of other processes, have its verdict.
    """
    if operation in _running:
        return None
    version = importlib.metadata.version("triton")
    key = f"{operation} {machine or architecture()} triton-{version} {source_hash()}"
    if key not in _verdicts:
        kept = _read()
        _verdicts[key] = kept[key] if key in kept else _tried(operation, trial)
        if key not in kept:
            _keep(key, _verdicts[key])
    verdict = _verdicts[key]
    if verdict is not None:
        logger.warning("%s: its Triton kernels failed their trial on this device: %s", operation, verdict)
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
