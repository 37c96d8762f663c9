"""The schema of the groups `cluster` (how a job is submitted) and `health` (what is watched while it runs).

The checks of their values are here too. What a batch script looks like is in `cpt_dist/cluster/slurm_script.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from cpt_dist.errors import nearest

CLUSTERS = ("none", "slurm")
LAUNCHERS = ("torchrun", "deepspeed", "srun")
CHAIN = ("stages", "consolidate", "evaluate")


@dataclass
class ClusterConfig:
    name: str = "none"
    """none, or slurm (what launch/submit.py submits to)."""
    launcher: str = "torchrun"
    """What starts the ranks of a node: torchrun, deepspeed, or srun alone."""
    nodes: int = 1
    """Nodes of the job."""
    ranks_per_node: int = 1
    """Processes on each node: its number of GPUs, or 1 to a few on CPUs."""
    gpus_per_node: int = 0
    """GPUs asked for on each node (--gpus-per-node); 0 asks for none."""
    cpus_per_rank: int = 1
    """CPU cores of a rank, loader processes included."""
    account: str = ""
    """Slurm account; empty: the user's default, as in the fields below."""
    partition: str = ""
    """Slurm partition."""
    qos: str = ""
    """Slurm quality of service."""
    time: str = ""
    """Time limit of one start, such as 24:00:00 or 90 (minutes). The run may need many starts."""
    job_name: str = ""
    """Name of the job; default: the run directory's."""
    sbatch: list[str] = field(default_factory=list)
    """Further options of sbatch, each like --constraint=a100."""
    container: list[str] = field(default_factory=list)
    """Words put before every program of the job, such as [apptainer, exec, --nv, image.sif]."""
    python: str = ""
    """Interpreter of the job; default: the one that runs launch/submit.py, in a container `python`."""
    modules: list[str] = field(default_factory=list)
    """Environment modules that the batch script loads."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables that the batch script exports."""
    setup: list[str] = field(default_factory=list)
    """Lines of shell that the batch script runs first, as they are."""
    snapshot: bool = True
    """Run a copy of this code and of your configuration files, kept in the run directory, so that a job that starts
    again next week is the job that was submitted."""
    signal_margin_seconds: int = 180
    """Least time before the limit at which the job is told to stop; it must cover two steps and a save. A job that
    knows its end takes more where its saves take longer."""
    requeue: bool = True
    """Start again after a preemption, the time limit or a failure."""
    max_restarts: int = 100
    """How often at most, over all reasons."""
    max_failures: int = 3
    """Failures one after the other, without a new checkpoint between them, after which the job stays stopped."""
    backoff_seconds: int = 30
    """Wait before a start after a failure; it doubles with each further one, up to an hour."""
    node_failures: int = 2
    """A node blamed for so many failures is excluded from the next starts; 0 excludes none."""
    chain: list[str] = field(default_factory=list)
    """Jobs that follow each other: stages (one job a stage instead of one for all), consolidate, evaluate."""
    after: list[str] = field(default_factory=list)
    """Numbers of jobs that must have ended well before this one."""
    max_parallel: int = 0
    """Tasks of a sweep that run at one time; 0: no limit."""


@dataclass
class HealthConfig:
    heartbeat_seconds: float = 5.0
    """Time between writes of a rank's heartbeat file (run_dir/health); 0 writes none."""
    warn_after_seconds: float = 0.0
    """A rank that stays in one phase of a step longer names who is behind; 0: half of engine.timeout_seconds."""
    probe_every_steps: int = 100
    """Steps between measurements of each rank's own speed for the straggler report; 0: none."""
    preflight: bool = True
    """Check every node before the model is loaded (docs/cluster.md)."""
    free_checkpoints: int = 1
    """Checkpoints that must fit on the disk at the start; 0 doesn't ask."""
    max_clock_skew_seconds: float = 30.0
    """Largest difference between the clocks of two nodes."""


_LEAST = {
    "nodes": 1,
    "ranks_per_node": 1,
    "gpus_per_node": 0,
    "cpus_per_rank": 1,
    "signal_margin_seconds": 1,
    "max_restarts": 0,
    "max_failures": 1,
    "backoff_seconds": 0,
    "node_failures": 0,
    "max_parallel": 0,
}
_TIME = r"\d+|(\d+-)?\d+(:\d+){1,2}|\d+-\d+|"
# Slurm cuts its option lines at white space and gives these characters a meaning.
_PLAIN = r"[A-Za-z0-9][A-Za-z0-9_.,@+:=-]*|"


def cluster_problems(config: ClusterConfig) -> list[str]:
    """What is wrong with the group `cluster`, a line a problem."""
    problems = []
    for key, allowed in (("name", CLUSTERS), ("launcher", LAUNCHERS)):
        value = getattr(config, key)
        if value not in allowed:
            problems.append(f"cluster.{key}: '{value}' is unknown; {nearest(value, allowed)}")
    for one in config.chain:
        if one not in CHAIN:
            problems.append(f"cluster.chain: '{one}' is unknown; {nearest(one, CHAIN)}")
    for key, low in _LEAST.items():
        if getattr(config, key) < low:
            problems.append(f"cluster.{key}: {getattr(config, key)} must be at least {low}")
    if not re.fullmatch(_TIME, config.time):
        problems.append(f"cluster.time: {config.time!r} is no time limit; write minutes, 24:00:00 or 2-12:00:00")
    for key in ("account", "partition", "qos", "job_name"):
        if not re.fullmatch(_PLAIN, getattr(config, key)):
            problems.append(f"cluster.{key}: {getattr(config, key)!r} has characters that Slurm has other uses for")
    for option in config.sbatch:
        if not re.fullmatch(r"--[a-z][a-z-]*(=[^\s\x00-\x1f\"'\\#]+)?", option):
            problems.append(f"cluster.sbatch: {option!r} is no option; write it like --constraint=a100, without spaces")
    for job in config.after:
        if not re.fullmatch(r"\d+(_\d+)?", str(job)):
            problems.append(f"cluster.after: {job!r} is no job number")
    for variable in config.environment:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", variable):
            problems.append(f"cluster.environment: {variable!r} is no name of a variable")
    if any("\0" in word for word in [*config.container, *config.environment.values(), config.python]):
        problems.append("cluster: a zero byte can't be part of a command")
    return problems


def health_problems(config: HealthConfig, timeout_seconds: float) -> list[str]:
    """What is wrong with the group `health`, a line a problem."""
    problems = []
    for key in ("heartbeat_seconds", "warn_after_seconds", "probe_every_steps", "free_checkpoints"):
        if getattr(config, key) < 0:
            problems.append(f"health.{key}: {getattr(config, key)} is negative; 0 turns it off")
    if config.max_clock_skew_seconds <= 0:
        problems.append(f"health.max_clock_skew_seconds: {config.max_clock_skew_seconds} must be positive")
    if config.warn_after_seconds >= timeout_seconds:
        problems.append(
            f"health.warn_after_seconds: {config.warn_after_seconds} is no earlier than engine.timeout_seconds "
            f"{timeout_seconds}; lower it"
        )
    return problems
