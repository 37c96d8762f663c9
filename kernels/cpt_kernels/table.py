"""The table of operations and backends on this machine."""

from __future__ import annotations

import torch

from cpt_kernels import OPERATIONS
from cpt_kernels.registry import Spec, backends


def rows() -> list[tuple[str, str, str]]:
    """(operation, backend, what this machine says to it) in order of preference, for the usual dtype of the device."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    spec = Spec(device, "bfloat16" if device == "cuda" else "float32")
    found = []
    for operation in OPERATIONS:
        taken = False
        for backend in backends(operation):
            refusal = backend.supports(spec)
            reason = refusal or backend.on_request(spec)
            if reason is None:
                state, taken = ("can run" if taken else "auto takes it"), True
            else:
                state = reason if refusal else f"only by name: {reason}"
            found.append((operation, backend.name, state))
    return found


def table_text() -> str:
    """The table as Markdown."""
    lines = ["| operation | backend | on this machine |", "|---|---|---|"]
    lines += [f"| {operation} | {name} | {state} |" for operation, name, state in rows()]
    return "\n".join(lines)
