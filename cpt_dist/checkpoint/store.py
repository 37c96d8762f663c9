"""The checkpoints of a run: whole or absent, one format for every engine and world size.

A checkpoint is a folder `step-00000120` with the sharded tensors in `state/` (DCP), `trainer.json`, the probe and,
written last, `manifest.json` with a checksum of every file. It is made under a temporary name and renamed; what has
another name or no manifest doesn't exist for a reader. The store knows nothing of engines: it takes named tensors.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.api import CheckpointException

from cpt_dist.checkpoint.dcp import SafeReader
from cpt_dist.errors import UserError
from cpt_dist.files import file_checksum, sync_folder, write_json

FORMAT = "cpt_dist.checkpoint/1"


@dataclass(frozen=True)
class Probe:
    """A fixed text and the training model's logits on it, against which a consolidated model is checked."""

    input_ids: torch.Tensor
    """int64 [tokens]"""
    logits: torch.Tensor
    """fp32 [tokens, vocab]"""


def step_folder(step: int) -> str:
    """The folder name of a checkpoint."""
    return f"step-{step:08d}"


class CheckpointStore:
    """The checkpoints under one folder, as all ranks of the job see it."""

    def __init__(self, folder: Path, keep_last: int = 0) -> None:
        self.folder, self.keep_last = folder, keep_last

    def steps(self) -> list[int]:
        """Steps of the checkpoints that exist, oldest first."""
        if not self.folder.is_dir():
            return []
        matches = [(re.fullmatch(r"step-(\d{8,})", path.name), path) for path in self.folder.iterdir()]
        return sorted(int(match[1]) for match, path in matches if match and (path / "manifest.json").is_file())

    def path(self, step: int) -> Path:
        """Folder of the checkpoint of `step`."""
        return self.folder / step_folder(step)

    def save(self, step: int, tensors: dict[str, torch.Tensor], trainer: dict[str, Any], probe: Probe | None) -> Path:
        """Write a checkpoint; every rank calls it with its tensors and the same `trainer`.

        Either all ranks return and the checkpoint exists, or all raise UserError with what the disk said, and it
        doesn't. Older ones are pruned after.
        """
        try:
            return self._save(step, tensors, trainer, probe)
        except (OSError, CheckpointException) as error:
            causes = error.failures.values() if isinstance(error, CheckpointException) else [(error, None)]
            said = "; ".join(sorted({str(cause[0]) for cause in causes}))
            raise UserError(
                f"the checkpoint of step {step} was not written to {self.folder}: {said}; older ones are whole, "
                "mend the disk and start again"
            ) from error

    def _save(self, step: int, tensors: dict[str, torch.Tensor], trainer: dict[str, Any], probe: Probe | None) -> Path:
        first = dist.get_rank() == 0
        target, temporary = self.path(step), self.folder / f".{step_folder(step)}.tmp"

        def prepare() -> None:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)

        _together(prepare if first else None)
        dcp.save(tensors, storage_writer=dcp.FileSystemWriter(str(temporary / "state"), sync_files=True))

        def checksums() -> list[dict[str, Any]]:
            own = temporary.glob(f"state/__{dist.get_rank()}_*")
            return [_entry(path, temporary) for path in sorted(own)]

        files = [entry for entries in _together(checksums) for entry in entries]

        def finish() -> None:
            write_json(temporary / "trainer.json", trainer)
            if probe is not None:
                save_file({"input_ids": probe.input_ids, "logits": probe.logits}, temporary / "probe.safetensors")
            rest = [temporary / "state" / ".metadata", temporary / "trainer.json"]
            rest += [temporary / "probe.safetensors"] if probe is not None else []
            for path in rest:
                _sync_file(path)
                files.append(_entry(path, temporary))
            manifest = {"format": FORMAT, "step": step, "world_size": dist.get_world_size(), "files": files}
            write_json(temporary / "manifest.json", manifest)
            sync_folder(temporary / "state")
            sync_folder(temporary)
            replaced = self.folder / f".{step_folder(step)}.replaced"
            shutil.rmtree(replaced, ignore_errors=True)
            if target.exists():
                os.replace(target, replaced)
            os.replace(temporary, target)
            sync_folder(self.folder)
            shutil.rmtree(replaced, ignore_errors=True)
            self._prune(step)

        _together(finish if first else None)
        return target

    def _prune(self, newest: int) -> None:
        if self.keep_last > 0:
            older = [step for step in self.steps() if step <= newest]
            for step in older[: -self.keep_last]:
                # Renamed first: a half-removed folder must not look like a checkpoint.
                doomed = self.folder / f".{step_folder(step)}.pruned"
                os.replace(self.path(step), doomed)
                shutil.rmtree(doomed)

    def verify(self, step: int) -> None:
        """Compare every file of a checkpoint with its manifest; the ranks share the work.

        Raises UserError, on every rank, that names each damaged file.
        """
        manifest = self.manifest(step)
        rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)

        def check() -> list[str]:
            return [p for entry in manifest["files"][rank::world_size] if (p := self._problem(step, entry))]

        found = _together(check) if dist.is_initialized() else [check()]
        problems = [problem for part in found for problem in part]
        if problems:
            raise UserError(problems)

    def _problem(self, step: int, entry: dict[str, Any]) -> str | None:
        path = self.path(step) / entry["path"]
        advice = "use another step, or checkpoint.on_damage=previous"
        if not path.is_file():
            return f"checkpoint {step}: {path} is missing; {advice}"
        if path.stat().st_size != entry["bytes"]:
            return f"checkpoint {step}: {path} has {path.stat().st_size} bytes, not {entry['bytes']}; {advice}"
        found = file_checksum(path)
        if found != entry["xxh3"]:
            return f"checkpoint {step}: {path} has checksum {found}, its manifest says {entry['xxh3']}; {advice}"
        return None

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
        if manifest.get("format") != FORMAT or manifest.get("step") != step:
            raise UserError(f"checkpoint {step}: {path} is not a manifest of this step in format {FORMAT}")
        return manifest

    def newest_whole(self, on_damage: str) -> int | None:
        """The newest step that verifies; None where there is no checkpoint.

        A damaged one raises UserError, or with `on_damage` "previous" is passed over for the one before it.
        """
        problems: list[str] = []
        for step in reversed(self.steps()):
            try:
                self.verify(step)
                return step
            except UserError as error:
                problems += error.problems
                if on_damage == "refuse":
                    raise
        if problems:
            raise UserError(problems)
        return None

    def trainer(self, step: int) -> dict[str, Any]:
        """The trainer's own state in the checkpoint of `step`."""
        return json.loads((self.path(step) / "trainer.json").read_text(encoding="utf-8"))

    def probe(self, step: int) -> Probe | None:
        """The probe of a checkpoint, if it has one."""
        path = self.path(step) / "probe.safetensors"
        if not path.is_file():
            return None
        content = load_file(path)
        return Probe(content["input_ids"], content["logits"])

    def load(self, step: int, tensors: dict[str, torch.Tensor]) -> None:
        """Fill `tensors` (of any engine and world size) in place from the checkpoint of `step`.

        Raises UserError where it belongs to another model.
        """
        reader = SafeReader(self.path(step) / "state")
        stored = reader.tensor_shapes()
        names = set().union(*_together(lambda: set(tensors)))
        for name in sorted(names | set(stored)):
            where = f"checkpoint {step} in {self.folder} is of another model"
            if name not in stored or name not in names:
                raise UserError(f"{where}: tensor '{name}' is only in the {'model' if name in names else 'checkpoint'}")
            if name in tensors and tuple(tensors[name].shape) != tuple(stored[name]):
                there, here = list(stored[name]), list(tensors[name].shape)
                raise UserError(f"{where}: '{name}' has shape {there} there and {here} in the model")
        dcp.load(tensors, storage_reader=reader)


def _entry(path: Path, root: Path) -> dict[str, Any]:
    return {"path": str(path.relative_to(root)), "bytes": path.stat().st_size, "xxh3": file_checksum(path)}


def _sync_file(path: Path) -> None:
    with open(path, "rb") as handle:
        os.fsync(handle.fileno())


def _together(action: Callable[[], Any] | None) -> list[Any]:
    """Run `action` on the ranks that have one and return all results everywhere.

    A failure on any rank is raised on every rank, so that nobody waits for the dead in the next collective.
    """
    outcome: tuple[Any, str | None] = (None, None)
    try:
        outcome = (action() if action else None, None)
    except OSError as error:
        outcome = (None, f"rank {dist.get_rank()}: {error}")
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, outcome)
    failures = [problem for _, problem in gathered if problem]
    if failures:
        raise OSError("; ".join(failures))
    return [result for result, _ in gathered]
