"""What every node is asked before a model is loaded, all at once and a line a problem.

Room for checkpoints, one shared run directory, equal versions, clocks, and whether an all-reduce adds up. All ranks
take part and all raise the same.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import struct
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch

import cpt_dist
from cpt_dist.cluster.environment import host_name
from cpt_dist.config import CptConfig
from cpt_dist.engine.distributed import World
from cpt_dist.errors import UserError
from cpt_dist.training.first_rank import on_first

PACKAGES = ("torch", "deepspeed", "transformers", "safetensors", "numpy")
BYTES_PER_PARAMETER = 12
"""An fp32 weight and two fp32 moments."""
SECONDS_TO_APPEAR = 10.0
"""How long a network file system may take to show a new file on another node."""


@dataclass
class NodeFacts:
    """What a rank found out about its node."""

    rank: int
    node: str
    versions: dict[str, str] = field(default_factory=dict)
    clock: float = 0.0
    """Unix time right after all ranks left a barrier."""
    sees_token: bool = True
    free_bytes: int = 0
    """Free on the disk of the run directory, for this user."""


def check_nodes(config: CptConfig, world: World) -> None:
    """Raise UserError, on every rank, with all that is wrong with the nodes of the job."""
    if not config.health.preflight:
        return
    total = int(world.sum(torch.ones(1, dtype=torch.int64)))
    run_dir = Path(config.run_dir)
    facts = NodeFacts(world.rank, host_name(os.environ), versions=_versions())
    facts.free_bytes = shutil.disk_usage(run_dir).free
    token = run_dir / "health" / ".shared"
    secret = world.gather(uuid.uuid4().hex)[0]
    on_first(world, lambda: token.write_text(secret, encoding="utf-8"))
    facts.clock = time.time()
    facts.sees_token = _sees(token, secret)
    found = world.gather(facts)
    if world.is_first:
        token.unlink(missing_ok=True)
    needed = config.health.free_checkpoints * checkpoint_bytes(config.model.path)
    problems = node_problems(found, needed, config.run_dir, config.health.max_clock_skew_seconds)
    if total != world.size:
        problems.append(f"an all-reduce of ones over {world.size} ranks gave {total}; check the network library")
    if problems:
        raise UserError(problems)


def node_problems(facts: list[NodeFacts], needed_bytes: int, run_dir: str, max_skew_seconds: float) -> list[str]:
    """The problems of all nodes, given what their ranks found; each names the node and what to do."""
    problems = []
    nodes = {one.node: one for one in reversed(facts)}  # one rank speaks for a node
    usual = {name: _most_common([one.versions[name] for one in nodes.values()]) for name in facts[0].versions}
    clock = sorted(one.clock for one in nodes.values())[len(nodes) // 2]
    for node, one in sorted(nodes.items()):
        problems += [
            f"node {node}: {name} is {one.versions[name]}, elsewhere {other}; install the same on all nodes"
            for name, other in usual.items()
            if one.versions[name] != other
        ]
        if abs(one.clock - clock) > max_skew_seconds:
            problems.append(
                f"node {node}: its clock is {one.clock - clock:+.0f} s off the others; set it, or raise "
                "health.max_clock_skew_seconds"
            )
        if not one.sees_token:
            problems.append(f"node {node}: run_dir {run_dir} is not the one of rank 0; it must be on a shared disk")
    first = facts[0]
    if first.free_bytes < needed_bytes:
        problems.append(
            f"node {first.node}: the disk of {run_dir} has {first.free_bytes / 1e9:.2f} GB free, "
            f"{needed_bytes / 1e9:.2f} GB are needed for health.free_checkpoints; make room or lower that"
        )
    return problems


def checkpoint_bytes(model_folder: str) -> int:
    """Bytes of a checkpoint, from the headers of the model's safetensors files; 0 where it has none."""
    parameters = 0
    for path in Path(model_folder).glob("*.safetensors"):
        with open(path, "rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            header = json.loads(handle.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                count = 1
                for size in entry["shape"]:
                    count *= size
                parameters += count
    return parameters * BYTES_PER_PARAMETER


def _most_common(values: list[str]) -> str:
    return Counter(values).most_common(1)[0][0]


def _versions() -> dict[str, str]:
    own = {"cpt_dist": cpt_dist.__version__, "python": platform.python_version()}
    return own | {name: version(name) for name in PACKAGES}


def _sees(token: Path, secret: str) -> bool:
    end = time.monotonic() + SECONDS_TO_APPEAR
    while True:
        # Listing the folder makes a network file system look again.
        if token.name in os.listdir(token.parent) and token.read_text(encoding="utf-8") == secret:
            return True
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
