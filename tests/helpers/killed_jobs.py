"""Training jobs one after the other, most of which are killed: python -m tests.helpers.killed_jobs FILE

FILE is a JSON list of {"config": whole configuration, "ranks": how many, "kill": null or {"step", "moment", "rank"}}. A
job resumes where its run directory has a checkpoint. Moments of a step are "batches" (it has its data), "backward" (one
micro-batch has its gradients), "weights" (they have changed, nothing knows), "recorded" (its callbacks are done, its
checkpoint is being written), "entered" (its stage was entered, right before its first batch) and "time" (`seconds`
after it began). `rank` is the one that dies, null kills all. The last line on stdout is a list: for each job, how its
ranks ended. Each rank records its samples and its RoPE as `worker.py` does.
"""

import json
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

os.environ.setdefault("DS_ACCELERATOR", "cpu")
import deepspeed  # noqa: F401 - imported once here, and not by each forked rank
import torch
from omegaconf import OmegaConf

from cpt_dist.config import CptConfig, EngineConfig
from cpt_dist.engine import distributed
from cpt_dist.training.callback import Callback
from cpt_dist.training.setup import set_up
from cpt_dist.training.trainer import fit
from tests.helpers.forked import fork, wait, was_killed
from tests.helpers.worker import record_samples


class AfterCallbacks(Callback):
    def __init__(self, action):
        self.action = action

    def after_step(self, run, result):
        self.action(result.step)


def after(owner, name, action):
    """Let the method `name` of `owner` call `action` at its end."""
    method = getattr(owner, name)

    def longer(*arguments, **keywords):
        result = method(*arguments, **keywords)
        action()
        return result

    setattr(owner, name, longer)


def arm(run, kill, marker):
    """Make this rank die at the moment that `kill` names; for a moment in time, tell when its step begins."""

    def strike(moment, step=None):
        if kill["moment"] == moment and (run.step + 1 if step is None else step) == kill["step"]:
            os.kill(0 if kill["rank"] is None else os.getpid(), signal.SIGKILL)  # 0: the whole job

    def before_batches():
        strike("batches")
        if run.step + 1 == kill["step"]:
            marker.touch()

    steps_of = run.steps_of

    def watched(index):
        for batches in steps_of(index):
            before_batches()
            yield batches

    run.steps_of = watched
    after(run.engine, "forward_backward", lambda: strike("backward"))
    after(run.engine, "step", lambda: strike("weights"))
    after(run, "enter_stage", lambda: strike("entered"))
    run.callbacks.append(AfterCallbacks(lambda step: strike("recorded", step)))


def work(number, job, marker, rank):
    world = distributed.start(EngineConfig(threads=1, timeout_seconds=60))
    run = set_up(OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(CptConfig), job["config"])), world)
    record_samples(run, 0.0, number)
    kill = job["kill"]
    if kill is not None and kill["rank"] in (None, rank):
        arm(run, kill, marker)
    fit(run)
    distributed.stop()


def carry_out(number, job, folder):
    """One job from its start to its end; returns "done", "killed" or what went wrong, for each rank."""
    log, marker, kill = folder / f"job-{number}.log", folder / f"job-{number}.begun", job["kill"]
    ranks = fork(job["ranks"], log, partial(work, number, job, marker))
    strike, victims = None, ()
    if kill is not None and kill["moment"] == "time":
        victims = ranks if kill["rank"] is None else [ranks[kill["rank"]]]

        def strike():
            return marker.exists() and time.time() - marker.stat().st_mtime >= kill["seconds"]

    statuses = wait(ranks, strike, victims)
    return ["killed" if was_killed(one) else "done" if one == 0 else f"status {one}, see {log}" for one in statuses]


def main():
    torch.set_num_threads(1)
    path = Path(sys.argv[1])
    outcomes = [carry_out(number, job, path.parent) for number, job in enumerate(json.loads(path.read_text()))]
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main()
