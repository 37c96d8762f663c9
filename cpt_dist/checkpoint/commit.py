"""The one way in which a checkpoint comes into being or goes.

Everything is written under a temporary name, flushed, listed with checksums in `manifest.json` and renamed last; what
goes is renamed first and removed after. So a process killed at any moment leaves whole checkpoints and folders whose
names begin with a dot, which `tidy` clears away (the way of "Atomic Commit In SQLite", with folders for files).
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file

from cpt_dist.checkpoint.catalogue import FORMAT, step_folder
from cpt_dist.checkpoint.checksummed_writer import ChecksummedWriter
from cpt_dist.checkpoint.integrity import file_entry
from cpt_dist.checkpoint.probe import PROBE_FILE, Probe
from cpt_dist.checkpoint.together import together
from cpt_dist.files import fingerprint, sync_folder, write_json

_LEFTOVER = re.compile(r"\.(step-\d{8,})\.(tmp|replaced|pruned)")


@dataclass(frozen=True)
class Content:
    """What a checkpoint holds: this rank's part of the tensors, and what is the same on every rank."""

    tensors: dict[str, torch.Tensor]
    trainer: dict[str, Any]
    probe: Probe | None = None
    bits_per_byte: dict[str, float] | None = None
    """Held-out bits per byte of each source, where they were measured at this step."""


def commit(folder: Path, step: int, content: Content, group: dist.ProcessGroup | None = None) -> Path:
    """Write a checkpoint below `folder`; every rank of `group` (default: of the job) calls it.

    Raises OSError or DCP's CheckpointException on every rank where any of them fails; then no checkpoint of this step
    has come into being.
    """
    rank, first = dist.get_rank(), dist.get_rank() == 0
    target, temporary = folder / step_folder(step), folder / f".{step_folder(step)}.tmp"

    def prepare() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        sync_folder(folder.parent)
        temporary.mkdir()

    tidy_together(folder, group)
    together(prepare if first else None, group)
    writer = ChecksummedWriter(temporary / "state")
    dcp.save(_weights_first(content.tensors), storage_writer=writer, process_group=group)
    files = [entry for entries in together(lambda: writer.entries(temporary, rank), group) for entry in entries]

    def finish() -> None:
        shared = [temporary / "state" / ".metadata", temporary / "trainer.json"]
        write_json(temporary / "trainer.json", content.trainer)
        if content.probe is not None:
            shared.append(temporary / PROBE_FILE)
            save_file({"input_ids": content.probe.input_ids, "logits": content.probe.logits}, shared[-1])
        for path in shared:
            _sync_file(path)
            files.append(file_entry(path, temporary, rank))
        manifest: dict[str, Any] = {"format": FORMAT, "step": step, "world_size": dist.get_world_size(), "files": files}
        if content.bits_per_byte:
            manifest["bits_per_byte"] = content.bits_per_byte
        write_json(temporary / "manifest.json", {**manifest, "fingerprint": fingerprint(manifest)})
        sync_folder(temporary / "state")
        sync_folder(temporary)
        if target.exists():
            os.replace(target, folder / f".{step_folder(step)}.replaced")
        os.replace(temporary, target)
        sync_folder(folder)

    together(finish if first else None, group)
    return target


def _weights_first(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`tensors` in the order in which they are written: the model lies together, for those that read nothing else."""
    return dict(sorted(tensors.items(), key=lambda item: not item[0].startswith("model.")))


def retire(folder: Path, step: int) -> None:
    """Take a checkpoint's name away, so that half of it never looks like a checkpoint; the next tidying removes it."""
    doomed = folder / f".{step_folder(step)}.pruned"
    shutil.rmtree(doomed, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):  # somebody else has removed it
        os.replace(folder / step_folder(step), doomed)
    sync_folder(folder)


def tidy(folder: Path) -> None:
    """Clear away what was retired and what killed writers left, as one process.

    A whole checkpoint that was about to be replaced gets its name back. For the only writer of `folder`, and only while
    it isn't writing.
    """
    for path in _leftovers(folder):
        shutil.rmtree(path, ignore_errors=True)


def tidy_together(folder: Path, group: dist.ProcessGroup | None = None) -> None:
    """Do what `tidy` does on every rank of `group` (default: of the job), each with its share of the files.

    A file system of a cluster takes its time to delete a large file, and the ranks wait for each other.
    """
    rank, first = dist.get_rank(), dist.get_rank() == 0

    def listed() -> list[Path] | None:
        leftovers = _leftovers(folder)
        return sorted(path for one in leftovers for path in one.rglob("*") if path.is_file()) if leftovers else None

    files = together(listed if first else None, group)[0]
    if files is None:
        return

    def unlink() -> None:
        for path in files[rank :: dist.get_world_size()]:
            with contextlib.suppress(OSError):
                path.unlink()

    together(unlink, group)
    together((lambda: tidy(folder)) if first else None, group)


def _leftovers(folder: Path) -> list[Path]:
    """Folders that nobody needs, once a whole checkpoint that was about to be replaced has its name back."""
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        match = _LEFTOVER.fullmatch(path.name)
        if not match:
            continue
        if match[2] == "replaced" and not (folder / match[1]).exists() and (path / "manifest.json").is_file():
            os.replace(path, folder / match[1])
            sync_folder(folder)
        else:
            found.append(path)
    return found


def _sync_file(path: Path) -> None:
    with open(path, "rb") as handle:
        os.fsync(handle.fileno())
