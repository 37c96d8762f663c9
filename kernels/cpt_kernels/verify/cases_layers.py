"""Cases of the layers' operations: RMSNorm, residual and RMSNorm, SwiGLU, RoPE."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu

from cpt_kernels.rms_norm import add_rms_norm, rms_norm
from cpt_kernels.rope import rope
from cpt_kernels.swiglu import swiglu
from cpt_kernels.verify.case import Case, Inputs, Results

HUGE = 1e4
FAR = 2**31 + 64
"""Elements between the rows of a tensor whose offsets do not fit in 32 bits; its memory is never touched."""


def random(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator, scale: float = 1.0) -> Tensor:
    """Normal numbers, rounded to `dtype`."""
    return (torch.randn(shape, generator=generator) * scale).to(dtype)


def strided(x: Tensor) -> Tensor:
    """The same rows with a gap of 5 columns after each."""
    wide = x.new_full((*x.shape[:-1], x.shape[-1] + 5), 7.0)
    wide[..., : x.shape[-1]] = x
    return wide[..., : x.shape[-1]]


def far_rows(x: Tensor) -> Tensor:
    """The same two rows, FAR elements apart."""
    storage = torch.empty(FAR + x.shape[1], dtype=x.dtype)
    result = storage.as_strided(x.shape, (FAR, 1))
    result.copy_(x)
    return result


# What is laid out otherwise.
LAYOUTS = {"": lambda x: x, "strided": strided, "far rows": far_rows, "rising": lambda x: x.sort(dim=-1).values}


def norm_case(
    rows: int,
    columns: int,
    *,
    offset: float = 0.0,
    scale: float = 1.0,
    layout: str = "",
    residual: bool = False,
    large: bool = False,
) -> Case:
    """RMSNorm of [rows, columns], or with `residual` that of a sum."""

    def make(dtype: torch.dtype, generator: torch.Generator) -> Inputs:
        lay = LAYOUTS[layout]
        inputs = {
            "x": lay(random((rows, columns), dtype, generator, scale)),
            "weight": random((columns,), dtype, generator, 0.3),
        }
        if residual:
            inputs["residual"] = lay(random((rows, columns), dtype, generator, scale))
        return inputs

    def run(inputs: Inputs, backend: str) -> Results:
        if not residual:
            return {"y": rms_norm(inputs["x"], inputs["weight"], 1e-5, offset, backend)}
        total, y = add_rms_norm(inputs["x"], inputs["residual"], inputs["weight"], 1e-5, offset, backend)
        return {"sum": total, "y": y}

    def plain(inputs: Inputs) -> Results:
        # As in transformers' Llama, or with an offset its Gemma: x rounded before the weight, or not.
        x = inputs["x"] + inputs["residual"] if residual else inputs["x"]
        wide = x.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5)
        y = (normed * (inputs["weight"].float() + offset)).to(x.dtype) if offset else inputs["weight"] * normed.to(x)
        return {"sum": x, "y": y} if residual else {"y": y}

    name = ", ".join(filter(None, [f"{rows} x {columns}", layout, f"offset {offset}" if offset else ""]))
    name += ", huge" if scale == HUGE else ""
    trained = ("x", "residual", "weight") if residual else ("x", "weight")
    # A single column is normed to its sign: its gradient is 0 up to epsilon, and has no relative error.
    return Case(
        "add_rms_norm" if residual else "rms_norm",
        name,
        make,
        run,
        plain,
        trained if columns > 1 else (),
        poison="x" if columns > 1 and not layout else "",
        large=large or layout == "far rows",
    )


def gate_case(rows: int, columns: int, *, scale: float = 1.0, layout: str = "", large: bool = False) -> Case:
    """SwiGLU of [rows, columns]."""

    def make(dtype: torch.dtype, generator: torch.Generator) -> Inputs:
        lay = LAYOUTS[layout]
        # The product shall stay within fp16.
        up_scale = 1.0 if scale == 1.0 else 1e-2
        return {
            "gate": lay(random((rows, columns), dtype, generator, scale)),
            "up": lay(random((rows, columns), dtype, generator, up_scale)),
        }

    def run(inputs: Inputs, backend: str) -> Results:
        return {"y": swiglu(inputs["gate"], inputs["up"], backend)}

    def plain(inputs: Inputs) -> Results:
        return {"y": silu(inputs["gate"]) * inputs["up"]}

    name = ", ".join(filter(None, [f"{rows} x {columns}", layout, "huge" if scale == HUGE else ""]))
    poison = "gate" if not layout else ""
    large = large or layout == "far rows"
    return Case("swiglu", name, make, run, plain, ("gate", "up"), poison=poison, large=large)


def rope_case(
    heads: tuple[int, int],
    tokens: int,
    head_dim: int,
    half: int,
    *,
    packed: bool = False,
    offset: int = 0,
    layout: str = "",
    overwrite: bool = False,
    large: bool = False,
) -> Case:
    """RoPE of (query heads, key heads), of which the first 2 * `half` dimensions turn."""

    def make(dtype: torch.dtype, generator: torch.Generator) -> Inputs:
        frequencies = 1e4 ** -(torch.arange(half, dtype=torch.float64) / half)
        angles = torch.arange(tokens + offset, dtype=torch.float64)[:, None] * frequencies
        inputs = {}
        for name, count in zip(("query", "key"), heads, strict=True):
            # As a projection gives it: a token's heads lie beside each other.
            x = random((tokens, count, head_dim), dtype, generator).transpose(0, 1)
            inputs[name] = LAYOUTS[layout](x)
        inputs["cos"], inputs["sin"] = angles.cos().float(), angles.sin().float()
        inputs["positions"] = torch.arange(tokens) % max(tokens // 3, 1) if packed else None
        return inputs

    def run(inputs: Inputs, backend: str) -> Results:
        query, key, cos, sin, positions = (inputs[name] for name in ("query", "key", "cos", "sin", "positions"))
        turned = rope(query, key, cos, sin, positions, offset, overwrite_gradients=overwrite, backend=backend)
        # The gradients of a check are read again, so they may be overwritten only as copies.
        query, key = (one * 1.0 for one in turned) if overwrite else turned
        return {"query": query, "key": key}

    def plain(inputs: Inputs) -> Results:
        # As in transformers: tables in the dtype of the model, each product rounded.
        rows = (torch.arange(tokens) if inputs["positions"] is None else inputs["positions"]) + offset
        cos, sin = inputs["cos"][rows].to(inputs["query"]), inputs["sin"][rows].to(inputs["query"])
        results = {}
        for name in ("query", "key"):
            low, high, rest = inputs[name].split([half, half, head_dim - 2 * half], dim=-1)
            results[name] = torch.cat([low * cos - high * sin, high * cos + low * sin, rest], dim=-1)
        return results

    parts = [f"heads {heads[0]}/{heads[1]}", f"{tokens} x {head_dim}", "packed" if packed else ""]
    parts += [f"offset {offset}" if offset else "", f"turns {2 * half}" if 2 * half < head_dim else "", layout]
    parts += ["gradients overwritten" if overwrite else ""]
    name = ", ".join(filter(None, parts))
    return Case("rope", name, make, run, plain, ("query", "key"), poison="" if layout else "query", large=large)


CASES = [
    norm_case(1, 1),
    norm_case(3, 7),
    norm_case(5, 100),
    norm_case(4, 576),
    norm_case(2, 4097, large=True),
    norm_case(300, 16, large=True),
    norm_case(6, 33, layout="strided"),
    norm_case(2, 24, layout="far rows"),
    norm_case(4, 65, offset=1.0),
    norm_case(4, 128, scale=HUGE),
    norm_case(3, 7, residual=True),
    norm_case(4, 576, residual=True),
    norm_case(6, 33, residual=True, layout="strided"),
    norm_case(2, 24, residual=True, layout="far rows"),
    norm_case(2, 4097, residual=True, large=True),
    gate_case(1, 1),
    gate_case(3, 7),
    gate_case(4, 1536),
    gate_case(2, 4097, large=True),
    gate_case(5, 100, layout="strided"),
    gate_case(2, 24, layout="far rows"),
    gate_case(4, 128, scale=HUGE),
    rope_case((1, 1), 1, 2, 1),
    rope_case((3, 1), 3, 8, 4),
    rope_case((9, 3), 6, 64, 32, packed=True),
    rope_case((4, 2), 3, 10, 3, offset=1000),
    rope_case((5, 5), 4, 16, 8, layout="strided", packed=True),
    rope_case((4, 2), 4, 16, 8, overwrite=True),
    rope_case((9, 3), 20, 64, 32, packed=True, offset=131072, large=True),
]
