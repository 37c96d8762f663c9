"""The schema of a fork: a run that goes on from a checkpoint of another run, with another future.

It is a part of `cpt_dist.config` in a file of its own. What of the past must be the same is in
`cpt_dist/data/order_state.py`; how it is done in `cpt_dist/training/forking.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from cpt_dist.errors import nearest


@dataclass
class ForkConfig:
    """Where a run begins, if not with the base model; read by its first start, and kept in fork.json."""

    run_dir: str | None = None
    """Folder of the run to fork. Weights, moments, counters and the position in the data are those of its checkpoint;
    the stages up to there must be the same, those after it may be others."""
    step: str = "latest"
    """Its checkpoint: a number, latest, a name given by launch/checkpoints.py, or a stage, for the end of that."""
    optimizer: str = "carry"
    """Adam's moments and step counts: carry or reset."""
    cut_stage: bool = False
    """The stage that the checkpoint lies in ends there, and the stages after it follow, such as a cool-down. Its
    learning rates stay those of its whole length."""


def fork_problems(fork: ForkConfig, start_at_stage: str | None, names: list[str]) -> list[str]:
    """What is wrong with how a run begins; `names` are its stages."""
    problems = []
    if fork.optimizer not in ("carry", "reset"):
        problems.append(f"fork.optimizer: '{fork.optimizer}' is unknown; {nearest(fork.optimizer, ('carry', 'reset'))}")
    if fork.run_dir is None and (fork.step != "latest" or fork.cut_stage):
        problems.append("fork.run_dir: fork.step and fork.cut_stage are read with it only; give the run to fork")
    if start_at_stage is not None and start_at_stage not in names:
        problems.append(f"start_at_stage: there is no stage '{start_at_stage}'; {nearest(start_at_stage, names)}")
    if start_at_stage is not None and fork.cut_stage:
        problems.append("fork.cut_stage: start_at_stage begins with a whole stage; take one of them out")
    return problems
