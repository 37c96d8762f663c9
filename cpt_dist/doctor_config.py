"""The schema of launch/doctor.py, a part of `cpt_dist.config` in a file of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class DoctorConfig:
    """What launch/doctor.py reads besides `run_dir`, and where it writes."""

    logs: Any = field(default_factory=list)
    """Further log files (a path or glob, or a list of them): what the processes printed, if that isn't in run_dir."""
    out: str = "${run_dir}/doctor.json"
    """File of the findings; the same as .md and .html goes beside it."""


def doctor_problems(config: DoctorConfig) -> list[str]:
    """What is wrong with the values of `config`, a line a problem."""
    value = config.logs
    if isinstance(value, str) or (isinstance(value, list) and all(isinstance(one, str) for one in value)):
        return []
    return [f"doctor.logs: {value!r} is no path and no list of paths; write doctor.logs=[a.log,b.log]"]
