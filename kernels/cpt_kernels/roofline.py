"""Lower bounds on the time of each operation: bytes over bandwidth or operations over peak, whichever is longer.

From data sheets and arithmetic alone. A bound is no measurement: nothing here has been measured on a GPU, and no kernel
reaches its bound. Each tensor is counted as read or written once a kernel.
"""

from __future__ import annotations

from dataclasses import dataclass

TERA = 1e12
GIGA = 1e9


@dataclass(frozen=True)
class Device:
    """Peak figures of a data sheet."""

    name: str
    bytes_per_second: float
    bf16_flops: float
    """Dense, without sparsity."""


# NVIDIA A100 80GB SXM and H100 SXM data sheets, AMD Instinct MI300X data sheet.
DEVICES = (
    Device("A100", 2039 * GIGA, 312 * TERA),
    Device("H100", 3350 * GIGA, 989.4 * TERA),
    Device("MI300X", 5300 * GIGA, 1307.4 * TERA),
)


@dataclass(frozen=True)
class Shape:
    """A layer of a model of about 8 billion parameters, one row of 4,096 tokens in bf16."""

    tokens: int = 4096
    hidden: int = 4096
    intermediate: int = 14336
    heads: int = 32
    key_heads: int = 8
    head_dim: int = 128
    vocab: int = 131072
    document: int = 1024
    parameters: int = 1 << 24


@dataclass(frozen=True)
class Work:
    """What one operation moves and computes."""

    name: str
    bytes: float
    flops: float = 0.0

    def seconds(self, device: Device) -> float:
        """The bound on a device."""
        return max(self.bytes / device.bytes_per_second, self.flops / device.bf16_flops)


def works(shape: Shape) -> list[Work]:
    """Every operation, forward and backward."""
    tokens = shape.tokens
    row, wide = 2 * tokens * shape.hidden, 2 * tokens * shape.intermediate
    heads = 2 * tokens * (shape.heads + shape.key_heads) * shape.head_dim
    tables = 2 * 4 * tokens * shape.head_dim // 2
    logits = 4 * tokens * shape.vocab
    head = 2 * shape.vocab * shape.hidden
    # Products of queries and keys, and of weights and values, over half the square of each document.
    attention = 2 * 2 * tokens * shape.document / 2 * shape.heads * shape.head_dim
    queries, keys = 2 * tokens * shape.heads * shape.head_dim, 2 * tokens * shape.key_heads * shape.head_dim
    product = 2 * tokens * shape.hidden * shape.vocab
    return [
        Work("rms_norm forward", 2 * row),
        Work("rms_norm backward", 3 * row),
        Work("add_rms_norm forward", 4 * row),
        Work("add_rms_norm backward", 4 * row),
        Work("swiglu forward", 3 * wide),
        Work("swiglu backward", 5 * wide),
        Work("rope forward or backward", 2 * heads + tables),
        Work("cross_entropy forward", logits),
        Work("cross_entropy backward", 2 * logits),
        # Logits are written, read twice, overwritten by their gradient, and that is read by two products.
        Work("linear_cross_entropy, both", 6 * logits + 4 * head + 3 * row, 3 * product),
        Work("linear_kl, both", 9 * logits + 5 * head + 4 * row, 4 * product),
        Work("document_attention forward", 2 * queries + 2 * keys, attention),
        Work("document_attention backward", 4 * queries + 4 * keys, 2.5 * attention),
        Work("adamw, 16.8M parameters", 7 * 4 * shape.parameters),
    ]


def bounds_text() -> str:
    """The bounds as Markdown."""
    names = " | ".join(f"{device.name}, ms" for device in DEVICES)
    lines = [f"| bound, not measured | bytes | FLOPs | {names} |", "|---|---|---|---|---|---|"]
    for work in works(Shape()):
        times = " | ".join(f"{work.seconds(device) * 1e3:.3f}" for device in DEVICES)
        lines.append(f"| {work.name} | {work.bytes:.3g} | {work.flops:.3g} | {times} |")
    return "\n".join(lines)
