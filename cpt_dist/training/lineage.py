"""Where a model comes from: lineage.jsonl, a record at the start and end of a job and at each edge of a stage.

A record names everything that decides what the weights are: configuration, data, decisions, code, and the checkpoint
they are in, by hash. It is for people and auditors; no program reads a decision out of it.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

import cpt_dist
from cpt_dist.checkpoint.catalogue import Catalogue
from cpt_dist.config import CptConfig
from cpt_dist.data.view_names import source_of
from cpt_dist.errors import UserError
from cpt_dist.files import file_checksum, fingerprint

if TYPE_CHECKING:
    from cpt_dist.training.run import Run

_SECONDS_FOR_GIT = 10.0


def append_lineage(run: Run, event: str, stage: str | None = None, **more: Any) -> None:
    """Append a record on rank 0; one that says the same as an earlier one is left out, so a repeated edge is no other.

    `event` is start, stage, gate or end.
    """
    if not run.world.is_first:
        return
    record = {
        "event": event,
        "stage": stage,
        "step": run.step,
        "position": run.position,
        **more,
        "checkpoint": checkpoint_identity(Catalogue(run.directory.checkpoints), run.step),
        "config": config_hash(run.given),
        "sources": {source_of(source.name): source.fingerprint for source in run.sources},
        "order": run.order.fingerprint,
        "ledger": file_checksum(run.directory.ledger) if run.directory.ledger.is_file() else None,
        "code": code_identity(),
    }
    path = run.directory.lineage
    known = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    if event != "start" and any(_says(line, record) for line in known):
        return
    with open(path, "a", encoding="utf-8") as handle:
        if known and not path.read_bytes().endswith(b"\n"):
            handle.write("\n")  # a torn line of a killed process
        handle.write(json.dumps({**record, "time": time.time()}) + "\n")
        handle.flush()
        os.fsync(handle.fileno())


def _says(line: str, record: dict[str, Any]) -> bool:
    try:
        known = json.loads(line)
    except ValueError:
        return False
    known.pop("time", None)
    return bool(known == json.loads(json.dumps(record)))


def config_hash(config: CptConfig) -> str:
    """xxh3-128 of the resolved configuration, but for where the run lies."""
    content = OmegaConf.to_container(OmegaConf.structured(config))
    assert isinstance(content, dict)
    content.pop("run_dir")
    return fingerprint(content)


def checkpoint_identity(store: Catalogue, step: int) -> dict[str, Any] | None:
    """Path, step and manifest checksum of a checkpoint; None where there is none."""
    manifest = store.path(step) / "manifest.json"
    if not manifest.is_file():
        return None
    return {"path": str(store.path(step)), "step": step, "manifest": file_checksum(manifest)}


@cache
def code_identity() -> dict[str, Any]:
    """Version of the package, and the git commit of its folder where it has one, with whether files in it differ."""
    found: dict[str, Any] = {"version": cpt_dist.__version__, "commit": None, "dirty": None}
    root = Path(cpt_dist.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return found
    commit = _git(root, "rev-parse", "HEAD")
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    if commit is not None:
        found |= {"commit": commit, "dirty": None if changed is None else bool(changed)}
    return found


def _git(root: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=_SECONDS_FOR_GIT, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def last_lineage(run_dir: str | Path) -> dict[str, Any]:
    """The newest record of another run, and the checksum of its lineage.jsonl. Raises UserError where it has none."""
    path = Path(run_dir) / "lineage.jsonl"
    if not path.is_file():
        return {"run_dir": str(run_dir), "lineage": None}
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise UserError(f"'{path}' holds a line that is no JSON ({error}); restore it from a copy") from error
    return {
        "run_dir": str(run_dir),
        "lineage": file_checksum(path),
        "config": records[-1]["config"] if records else None,
    }
