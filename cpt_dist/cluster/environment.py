"""What Slurm's environment says of this process: its rank, the first host, the end of the job.

`srun` sets none of the variables that torch reads; `adopt_slurm_step` translates them. It starts nothing and asks no
Slurm daemon, which a container may not reach. Names and formats are those of the srun and sbatch manual pages.
"""

from __future__ import annotations

import re
from collections.abc import MutableMapping

DEFAULT_PORT = 29500


def adopt_slurm_step(environ: MutableMapping[str, str]) -> None:
    """Set RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT for a task of `srun`.

    Nothing changes where RANK is set (torchrun and deepspeed do that, also under srun) or where this is no task of a
    step: a batch script and a login shell have SLURM_PROCID and SLURM_NTASKS too, but are one process.
    """
    if "RANK" in environ or "SLURM_STEP_NUM_TASKS" not in environ:
        return
    size = int(environ["SLURM_STEP_NUM_TASKS"])
    if size == 1:
        return
    counts = tasks_per_node(environ["SLURM_STEP_TASKS_PER_NODE"])
    environ["RANK"] = environ["SLURM_PROCID"]
    environ["WORLD_SIZE"] = str(size)
    environ["LOCAL_RANK"] = environ["SLURM_LOCALID"]
    environ["LOCAL_WORLD_SIZE"] = str(counts[int(environ["SLURM_NODEID"])])
    environ.setdefault("MASTER_ADDR", first_host(environ["SLURM_STEP_NODELIST"]))
    # Jobs on one host must not meet; a step's own port range is not known to the others.
    environ.setdefault("MASTER_PORT", str(DEFAULT_PORT + int(environ.get("SLURM_JOB_ID", 0)) % 10000))


def tasks_per_node(text: str) -> list[int]:
    """Slurm's `2(x3),1` as [2, 2, 2, 1]."""
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise ValueError(f"'{text}' is no list of tasks per node")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def first_host(nodelist: str) -> str:
    """The first name of a Slurm node list: `gpu[007-009,12],login1` gives `gpu007`."""
    name, rest = "", nodelist
    while match := re.match(r"([^\[,]*)\[([^\],-]+)[^\]]*\]", rest):
        name += match[1] + match[2]
        rest = rest[match.end() :]
    return name + rest.split(",")[0] if rest and not rest.startswith(",") else name


def job_end_time(environ: MutableMapping[str, str]) -> float | None:
    """Unix time at which Slurm ends this job, if it said so (the batch script asks where old versions don't)."""
    text = environ.get("SLURM_JOB_END_TIME", "")
    return float(text) if text.isdigit() and int(text) > 0 else None


def host_name(environ: MutableMapping[str, str]) -> str:
    """The name of this machine, as Slurm knows it where there is one."""
    import socket

    return environ.get("SLURMD_NODENAME") or socket.gethostname()
