"""The yardstick of the model FLOPs utilisation: what this device reaches in a plain matrix product.

It is measured, since a data sheet says nothing about a shared CPU. It is not the speed of any model.
"""

from __future__ import annotations

import time

import torch


def measured_peak_flops(device: torch.device, dtype: torch.dtype, seconds: float = 0.3) -> float:
    """FLOP/s of a square matrix product in `dtype` with this process's threads, the best of repeated runs."""
    size = 8192 if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device).to(dtype)
    b = torch.randn(size, size, device=device).to(dtype)
    best = 0.0
    end = time.perf_counter() + seconds
    a @ b
    while time.perf_counter() < end:
        _synchronise(device)
        begin = time.perf_counter()
        a @ b
        _synchronise(device)
        best = max(best, 2 * size**3 / (time.perf_counter() - begin))
    return best


def resident_bytes(device: torch.device) -> int:
    """Most memory that this rank has held: allocated on its GPU, or resident in its process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
