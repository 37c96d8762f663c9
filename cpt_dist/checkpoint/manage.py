"""A run's checkpoints for a person: listed, checked, removed, named (launch/checkpoints.py).

It reads the files alone, so it can be used beside a running job; only `prune` must not meet a job that is saving.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from cpt_dist.checkpoint.dcp import SafeReader
from cpt_dist.checkpoint.open_store import checkpoint_store
from cpt_dist.checkpoint.store import CheckpointStore
from cpt_dist.config import CptConfig
from cpt_dist.console import output_console
from cpt_dist.errors import UserError


def manage(config: CptConfig) -> None:
    """Do what `config.checkpoints` asks. Raises UserError for a damaged checkpoint and for one that isn't there."""
    asked, store = config.checkpoints, checkpoint_store(config)
    if not Path(config.run_dir).is_dir():
        raise UserError(f"run_dir: '{config.run_dir}' does not exist; give the folder of a run")
    if asked.what in ("show", "name") and not asked.step:
        raise UserError(f"{asked.what}: which checkpoint? write {asked.what} STEP, with a step, a name or latest")
    if asked.what in ("name", "unname") and not asked.name:
        raise UserError(f"{asked.what}: which name? write {_USE[asked.what]}")
    if asked.what == "show":
        show(store, store.step_of(asked.step))
        return
    if asked.what == "name":
        store.set_name(_new_name(asked.name), store.step_of(asked.step))
    elif asked.what == "unname":
        store.set_name(asked.name, None)
    elif asked.what == "prune":
        removed, kept = store.prune()
        output_console().print(f"removed {removed or 'none'}; kept {kept or 'none'}", soft_wrap=True)
    problems = list_checkpoints(store, verify=asked.what in ("verify", "prune"))
    if problems:
        raise UserError(problems)


_USE = {"name": "name STEP NAME", "unname": "unname name=NAME"}


def _new_name(name: str) -> str:
    if name.isdecimal() or name == "latest":
        raise UserError(f"name: '{name}' would be taken for a step; choose a name with a letter")
    return name


def list_checkpoints(store: CheckpointStore, verify: bool) -> list[str]:
    """Print a table of all checkpoints; with `verify` read every byte and return what is damaged."""
    table = Table(title=str(store.folder), title_justify="left")
    for column in ("step", "written", "size", "ranks", "engine", "state", "kept because"):
        table.add_column(column, justify="right" if column in ("step", "size", "ranks") else "left", overflow="fold")
    found: list[str] = []
    for step, reasons in store.reasons().items():
        try:
            problems = store.problems(step) if verify else []
            facts = _facts(store, step)
        except UserError as error:
            problems, facts = error.problems, {}
        found += problems
        state = "damaged" if problems else "whole" if verify else "not checked"
        cells = [facts.get(key, "?") for key in ("written", "size", "ranks", "engine")]
        table.add_row(str(step), *cells, state, Text(", ".join(reasons) or "no rule keeps it: prune removes it"))
    output_console().print(table if table.row_count else f"no checkpoints in {store.folder}")
    return found


def _facts(store: CheckpointStore, step: int) -> dict[str, str]:
    manifest = store.manifest(step)
    written = datetime.datetime.fromtimestamp((store.path(step) / "manifest.json").stat().st_mtime)
    try:
        trainer = store.trainer(step)
    except (OSError, ValueError):
        trainer = {}  # the check of its checksum says so
    return {
        "written": written.isoformat(" ", "seconds"),
        "size": _in_words(sum(entry["bytes"] for entry in manifest["files"])),
        "ranks": str(manifest["world_size"]),
        "engine": str(trainer.get("engine", "?")),
    }


def _in_words(num_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.4g} TB"


def show(store: CheckpointStore, step: int) -> None:
    """Print what one checkpoint holds: who wrote it, where the run was, its files and whether each is whole."""
    console, manifest = output_console(), store.manifest(step)
    facts, reasons = _facts(store, step), store.reasons().get(step, [])
    console.print(f"checkpoint {step}: {facts['size']}, written {facts['written']}", soft_wrap=True)
    console.print(f"by {facts['engine']} on {facts['ranks']} rank(s); kept because: {', '.join(reasons) or 'nothing'}")
    problems = store.problems(step)
    table = Table()
    for column in ("file", "rank", "bytes", "state"):
        table.add_column(column, justify="right" if column in ("rank", "bytes") else "left", overflow="fold")
    for entry in manifest["files"]:
        damaged = any(str(store.path(step) / entry["path"]) in problem for problem in problems)
        state = "damaged" if damaged else "whole"
        table.add_row(entry["path"], str(entry.get("rank", "?")), f"{entry['bytes']:,}", state)
    console.print(table)
    if problems:
        raise UserError(problems)
    trainer: dict[str, Any] = store.trainer(step)
    shapes = SafeReader(store.path(step) / "state").tensor_shapes()
    weights = sum(shape.numel() for name, shape in shapes.items() if name.startswith("model."))
    console.print(f"{len(shapes)} tensors, {weights:,} weights; sample {trainer.get('position', '?')}")
    for name, value in manifest.get("bits_per_byte", {}).items():
        console.print(Text(f"held-out bits per byte of {name}: {value:.4f}"))
