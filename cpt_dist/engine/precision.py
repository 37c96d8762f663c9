"""Which number type the model computes in.

`auto` takes bf16 only where the hardware multiplies it fast: on a CPU without AMX or AVX512-BF16 a bf16 matrix
product is two orders of magnitude slower than one in fp32. Master weights and optimizer state are fp32 always.
"""

from __future__ import annotations

import torch

from cpt_dist.errors import UserError


def fast_bf16(device: torch.device) -> bool:
    """Whether `device` has instructions for bf16 matrix products."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def resolve_precision(wanted: str, device: torch.device) -> tuple[torch.dtype, str]:
    """The compute type for `wanted` (auto, fp32 or bf16) and one line that says why.

    Raises UserError for bf16 on a GPU that has none.
    """
    fast = fast_bf16(device)
    if wanted == "fp32":
        return torch.float32, "fp32 (as configured)"
    if wanted == "bf16":
        if device.type == "cuda" and not fast:
            raise UserError("engine.precision: 'bf16' is not supported by this GPU (before sm_80); set fp32 or auto")
        return torch.bfloat16, "bf16 (as configured)" + ("" if fast else "; this device multiplies it slowly")
    if fast:
        return torch.bfloat16, "bf16 (auto: the device multiplies it fast)"
    return torch.float32, "fp32 (auto: this device has no fast bf16 matrix product)"
