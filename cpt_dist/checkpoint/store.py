"""The checkpoints of a run: whole or absent, one format for every engine and world size.

A checkpoint is a folder `step-00000120` with the sharded tensors in `state/` (DCP), `trainer.json`, the probe and,
written last, `manifest.json` with checksums of every file. What has another name or no manifest doesn't exist for a
reader. How one comes into being is in `commit.py`. The store knows nothing of engines: it takes named tensors.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from cpt_dist.checkpoint import integrity
from cpt_dist.checkpoint.catalogue import Catalogue, step_folder
from cpt_dist.checkpoint.commit import Content, commit, retire, tidy, tidy_together
from cpt_dist.checkpoint.dcp import SafeReader
from cpt_dist.checkpoint.local_part import local_part
from cpt_dist.checkpoint.probe import Probe, read_probe
from cpt_dist.checkpoint.retention import Retention
from cpt_dist.checkpoint.together import together
from cpt_dist.errors import UserError, nearest
from cpt_dist.files import write_json

__all__ = ["CheckpointStore", "Probe", "step_folder"]


class CheckpointStore(Catalogue):
    """The checkpoints under one folder, as all ranks of the job see it."""

    def __init__(self, folder: Path, keep_last: int = 0, retention: Retention | None = None) -> None:
        super().__init__(folder)
        self.retention = retention or Retention(keep_last)

    def save(
        self,
        step: int,
        tensors: dict[str, torch.Tensor],
        trainer: dict[str, Any],
        probe: Probe | None,
        bits_per_byte: dict[str, float] | None = None,
        group: dist.ProcessGroup | None = None,
    ) -> Path:
        """Write a checkpoint; every rank calls it with its tensors and otherwise the same arguments.

        Either all ranks return and the checkpoint exists, or all raise UserError with what the disk said, and it
        doesn't. Those that no rule keeps are removed after. `group` is a gloo group of all ranks (default: the job's).
        """
        try:
            path = commit(self.folder, step, Content(tensors, trainer, probe, bits_per_byte), group)
        except (OSError, CheckpointException) as error:
            raise UserError(
                f"the checkpoint of step {step} was not written to {self.folder}: {self._said(error, tensors)}; older "
                "ones are whole, mend the disk and start again"
            ) from error
        try:
            # What was just written is whole, so there is a good one whatever goes.
            together((lambda: self._retire_unkept(newest=step)) if dist.get_rank() == 0 else None, group)
            tidy_together(self.folder, group)
        except OSError as error:
            raise UserError(
                f"the checkpoint of step {step} is whole, but older ones could not be removed from {self.folder}: "
                f"{error}; mend the disk and start again"
            ) from error
        return path

    def _said(self, error: OSError | CheckpointException, tensors: dict[str, torch.Tensor]) -> str:
        """What made a save fail, on one line."""
        causes = [cause for cause, _ in error.failures.values()] if isinstance(error, CheckpointException) else [error]
        said = "; ".join(sorted({" ".join(str(cause).split()) for cause in causes}))
        # torch.save says of a full disk that a position is unexpected.
        if self.folder.is_dir() and not any(isinstance(cause, OSError) for cause in causes):
            free = shutil.disk_usage(self.folder).free
            if free < sum(local_part(tensor).nbytes for tensor in tensors.values()):
                return f"No space left on device ({free:,} bytes free; {said})"
        return said

    def _retire_unkept(self, newest: int) -> None:
        for step, reasons in self.reasons().items():
            if not reasons and step < newest:
                retire(self.folder, step)

    def reasons(self) -> dict[int, list[str]]:
        """Step -> why the checkpoint stays; an empty list where the next prune takes it."""
        steps = self.steps()
        evaluations = {}
        for step in steps if self.retention.keep_best else ():
            try:
                evaluations[step] = self.manifest(step).get("bits_per_byte", {})
            except UserError:
                continue  # damaged: it has no score, and is named by whoever verifies it
        return self.retention.reasons(steps, evaluations, self.names())

    def prune(self) -> tuple[list[int], list[int]]:
        """Remove what no rule keeps, as one process; returns the steps removed and those kept.

        Where none of those that the rules keep is whole, the newest whole one of the others stays too.
        """
        tidy(self.folder)
        reasons = self.reasons()
        doomed = [step for step, why in reasons.items() if not why]
        if doomed and not any(self._is_whole(step) for step, why in reversed(reasons.items()) if why):
            saved = next((step for step in reversed(doomed) if self._is_whole(step)), None)
            doomed = [step for step in doomed if step != saved]
        for step in doomed:
            retire(self.folder, step)
        tidy(self.folder)
        return doomed, [step for step in reasons if step not in doomed]

    def retire_rest(self) -> None:
        """Take away, as one process, what no rule keeps, where the newest checkpoint was verified; `tidy` deletes it.

        A job that was killed between its last save and the prune after it leaves such checkpoints.
        """
        for step, why in self.reasons().items():
            if not why:
                retire(self.folder, step)

    def _is_whole(self, step: int) -> bool:
        try:
            return not self.problems(step)
        except UserError:
            return False

    def tidy(self) -> None:
        """Clear away what a killed writer left; for all ranks together, while none is saving.

        Raises UserError on every rank where the disk doesn't let it.
        """
        try:
            tidy_together(self.folder)
        except OSError as error:
            raise UserError(f"{error}; give write access, and start again: what was whole stays") from error

    def set_name(self, name: str, step: int | None) -> None:
        """Give the checkpoint of `step` a name, which keeps it; None takes the name away."""
        names = self.names()
        if step is None:
            if names.pop(name, None) is None:
                raise UserError(f"no checkpoint has the name '{name}'; {nearest(name, names)}")
        else:
            self.manifest(step)
            names[name] = step
        write_json(self.folder / "names.json", names)

    def verify(self, step: int, how: str = "whole") -> None:
        """Compare the files of a checkpoint with its manifest; the ranks share the bytes.

        `how` is "whole" or "sampled" (`integrity.py`). Raises UserError, on every rank, that names each damaged file.
        """
        rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)

        def check() -> list[str]:
            return self.problems(step, how, integrity.Share(rank, world_size))

        found = together(check) if dist.is_initialized() else [check()]
        problems = dict.fromkeys(problem for part in found for problem in part)
        if problems:
            raise UserError(f"{problem}; use another step, or checkpoint.on_damage=previous" for problem in problems)

    def problems(self, step: int, how: str = "whole", share: integrity.Share | None = None) -> list[str]:
        """A line for each file of a checkpoint that `share` (default: of everything) finds damaged."""
        found = integrity.problems(self.path(step), self.manifest(step)["files"], how, step, share)
        return [f"checkpoint {step}: {problem}" for problem in found]

    def newest_whole(self, on_damage: str, how: str = "whole") -> int | None:
        """The newest step that verifies; None where there is no checkpoint.

        A damaged one raises UserError, or with `on_damage` "previous" is passed over for the one before it.
        """
        problems: list[str] = []
        for step in reversed(self.steps()):
            try:
                self.verify(step, how)
                return step
            except UserError as error:
                problems += error.problems
                if on_damage == "refuse":
                    raise
        if problems:
            raise UserError(problems)
        return None

    def probe(self, step: int) -> Probe | None:
        """The probe of a checkpoint, if it has one."""
        return read_probe(self.path(step))

    def load(self, step: int, tensors: dict[str, torch.Tensor]) -> None:
        """Fill `tensors` (of any engine and world size) in place from the checkpoint of `step`.

        Raises UserError where it belongs to another model.
        """
        reader = SafeReader(self.path(step) / "state")
        stored = reader.tensor_shapes()
        names = set().union(*together(lambda: set(tensors)))
        for name in sorted(names | set(stored)):
            where = f"checkpoint {step} in {self.folder} is of another model"
            if name not in stored or name not in names:
                raise UserError(f"{where}: tensor '{name}' is only in the {'model' if name in names else 'checkpoint'}")
            if name in tensors and tuple(tensors[name].shape) != tuple(stored[name]):
                there, here = list(stored[name]), list(tensors[name].shape)
                raise UserError(f"{where}: '{name}' has shape {there} there and {here} in the model")
        dcp.load(tensors, storage_reader=reader)
