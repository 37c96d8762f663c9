"""The text and logits in a checkpoint against which the consolidated model is checked.

The training model computes them when it saves; they lie beside the weights. How they are compared is in
`streamed_model.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

PROBE_FILE = "probe.safetensors"


@dataclass(frozen=True)
class Probe:
    """A fixed text and the training model's logits on it, against which a consolidated model is checked."""

    input_ids: torch.Tensor
    """int64 [tokens]"""
    logits: torch.Tensor
    """fp32 [tokens, vocab]"""


def read_probe(checkpoint: Path) -> Probe | None:
    """The probe in the folder of a checkpoint, if it has one."""
    path = checkpoint / PROBE_FILE
    if not path.is_file():
        return None
    content = load_file(path)
    return Probe(content["input_ids"], content["logits"])
