"""Where a run keeps what. docs/run_directory.md shows the tree.

It names paths and appends to the metrics file; it does not decide what is written when.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from cpt_dist.config import CptConfig
from cpt_dist.files import atomic_write, sync_folder, write_json


class RunDirectory:
    """The folder of one run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.starts = self.path / "starts"
        self.checkpoints = self.path / "checkpoints"
        self.metrics = self.path / "metrics.jsonl"
        self.ledger = self.path / "ledger.jsonl"
        self.order = self.path / "order.json"
        self.model_files = self.path / "model_files"

    def create(self, config: CptConfig) -> None:
        """Make the folder and save the resolved configuration, also under the number of this start."""
        self.starts.mkdir(parents=True, exist_ok=True)
        number = len(list(self.starts.glob("*.yaml"))) + 1
        text = OmegaConf.to_yaml(OmegaConf.structured(config))
        for path in (self.starts / f"{number:04d}.yaml", self.config):
            with atomic_write(path, "w") as handle:
                handle.write(text)
        sync_folder(self.path)

    def keep_order(self, identity: dict[str, Any]) -> None:
        """Write order.json where it is not what the sample order of the run now is."""
        if self.read_order() != json.loads(json.dumps(identity)):
            write_json(self.order, identity)

    def read_order(self) -> dict[str, Any] | None:
        """The content of order.json; None where it is missing or no JSON, as it only makes messages better."""
        try:
            return json.loads(self.order.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Append one record to metrics.jsonl. A torn last line of a killed process is ended first."""
        with open(self.metrics, "a+b") as handle:
            if handle.tell():
                handle.seek(-1, 2)
                if handle.read(1) != b"\n":
                    handle.write(b"\n")
            handle.write((json.dumps(record) + "\n").encode())
