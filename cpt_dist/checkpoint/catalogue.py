"""Which checkpoints a run has and what their small files say, without torch.

It is the part of the store that needs no process group and no tensor, for programs that list checkpoints or move
their bytes. How a checkpoint is written, verified whole and loaded is in `store.py`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from cpt_dist.errors import UserError, nearest
from cpt_dist.files import fingerprint

FORMAT = "cpt_dist.checkpoint/2"
OLD_FORMAT = "cpt_dist.checkpoint/1"
"""Like it, without a fingerprint of the manifest and checksums of blocks; still read."""


def step_folder(step: int) -> str:
    """The folder name of a checkpoint."""
    return f"step-{step:08d}"


class Catalogue:
    """The checkpoints under one folder, to be looked at."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def steps(self) -> list[int]:
        """Steps of the checkpoints that exist, oldest first."""
        if not self.folder.is_dir():
            return []
        matches = [(re.fullmatch(r"step-(\d{8,})", path.name), path) for path in self.folder.iterdir()]
        return sorted(int(match[1]) for match, path in matches if match and (path / "manifest.json").is_file())

    def path(self, step: int) -> Path:
        """Folder of the checkpoint of `step`."""
        return self.folder / step_folder(step)

    def step_of(self, text: str) -> int:
        """The step that a number, a name or "latest" means. Raises UserError where there is no such checkpoint."""
        steps, names = self.steps(), self.names()
        if text == "latest" and steps:
            return steps[-1]
        step = names.get(text, int(text) if text.isdecimal() else -1)
        if step in steps:
            return step
        hint = "" if text.isdecimal() or text == "latest" else f"; {nearest(text, [*names, 'latest'])}"
        raise UserError(f"there is no checkpoint of step {text} in {self.folder}; there are: {steps or 'none'}{hint}")

    def names(self) -> dict[str, int]:
        """Name -> step of the checkpoints that a user named. Raises UserError where the file of names is damaged."""
        path = self.folder / "names.json"
        try:
            names = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            return {str(name): int(step) for name, step in names.items()}
        except (ValueError, AttributeError, TypeError) as error:
            raise UserError(f'{path} is damaged ({error}); write it again like {{"name": 120}}') from error

    def manifest(self, step: int) -> dict[str, Any]:
        """The manifest of a checkpoint. Raises UserError where there is none or it is not one."""
        path = self.path(step) / "manifest.json"
        if not path.is_file():
            raise UserError(
                f"there is no checkpoint of step {step} in {self.folder}; there are: {self.steps() or 'none'}"
            )
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"checkpoint {step}: {path} is damaged ({error}); use another step") from error
        said = manifest.pop("fingerprint", None)
        is_old = manifest.get("format") == OLD_FORMAT and said is None
        if not is_old and said != fingerprint(manifest):
            raise UserError(f"checkpoint {step}: {path} is damaged (it is not what was written); use another step")
        if manifest.get("format") not in (FORMAT, OLD_FORMAT) or manifest.get("step") != step:
            raise UserError(f"checkpoint {step}: {path} is not a manifest of this step in format {FORMAT}")
        return manifest

    def trainer(self, step: int) -> dict[str, Any]:
        """The trainer's own state in the checkpoint of `step`."""
        return json.loads((self.path(step) / "trainer.json").read_text(encoding="utf-8"))
