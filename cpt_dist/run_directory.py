"""Where a run keeps what. docs/run_directory.md shows the tree.

It names paths and appends to the metrics file; it does not decide what is written when.
"""

from __future__ import annotations

import contextlib
import json
import os
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
        self.stages = self.path / "stages.json"
        self.fork = self.path / "fork.json"
        self.lineage = self.path / "lineage.jsonl"
        self.model_files = self.path / "model_files"
        self._failure: OSError | None = None

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
        """Append one record to metrics.jsonl. A torn last line of a killed process is ended first.

        What the disk says against it is kept for `raise_failure`: only rank 0 writes here, often between two
        collectives, and may not leave the others alone in the second.
        """
        size = None
        try:
            with open(self.metrics, "a+b") as handle:
                size = handle.tell()
                if size:
                    handle.seek(-1, 2)
                    if handle.read(1) != b"\n":
                        handle.write(b"\n")
                handle.write((json.dumps(record) + "\n").encode())
        except OSError as error:
            with contextlib.suppress(OSError):
                if size is not None:
                    os.truncate(self.metrics, size)  # no half a record
            error.filename = str(self.metrics)
            self._failure = self._failure or error

    @property
    def failed(self) -> bool:
        """Whether a record could not be appended."""
        return self._failure is not None

    def raise_failure(self) -> None:
        """Raise the OSError of the first record that could not be appended, if there is one."""
        if self._failure is not None:
            raise self._failure
