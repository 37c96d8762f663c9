"""The batch script of a job: one readable file that can be submitted again with sbatch.

Rendering is a pure function of a `Job`. Values that come from the user are quoted for the shell, or, in the #SBATCH
lines, for Slurm's own parser; a value that neither can carry is refused. The script only starts the ranks, hands on
signals and asks `requeue.py` what to do at the end.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from cpt_dist.cluster_config import ClusterConfig
from cpt_dist.errors import UserError


@dataclass(frozen=True)
class Job:
    """What one batch script does."""

    name: str
    """Its file is run_dir/slurm/<name>.sbatch."""
    script: str
    """The script under launch/ that it runs."""
    tasks: list[list[str]]
    """The script's arguments, for each task of a sweep; one list where it is none."""
    run_dirs: list[str]
    """The run directory of each task, absolute."""
    log_dir: str
    """Where Slurm writes the batch script's own output, absolute."""
    work_dir: str
    """Where relative paths in the arguments begin, absolute."""
    code: str
    """Folder that holds launch/, cpt_dist/ and kernels/, absolute."""
    python: str
    distributed: bool
    """Whether it runs on all nodes with the launcher; otherwise as one process on one node."""
    wait_seconds: int
    """How long the other nodes may go on after the first has ended."""
    cluster: ClusterConfig

    @property
    def is_sweep(self) -> bool:
        """Whether it is an array job."""
        return len(self.tasks) > 1


def sbatch_value(text: str, what: str) -> str:
    """`text` as the value of an option in an #SBATCH line, whose parser knows double quotes and backslashes.

    Raises UserError for characters that no quoting carries through such a line.
    """
    if re.search(r"[\x00-\x1f\x7f]", text):
        raise UserError(f"{what}: {text!r} has a control character, which an #SBATCH line can't hold; rename it")
    if re.fullmatch(r"[A-Za-z0-9_./,:@%+=-]*", text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def options(job: Job) -> list[str]:
    """The #SBATCH options."""
    cluster = job.cluster
    one_task = not job.distributed or cluster.launcher != "srun"
    nodes, ranks = (cluster.nodes, cluster.ranks_per_node) if job.distributed else (1, 1)
    tasks = 1 if one_task else ranks
    log = job.log_dir.replace("\\", "\\\\").replace("%", "%%") + f"/{job.name}-{'%A_%a' if job.is_sweep else '%j'}.out"
    found = [
        f"--job-name={sbatch_value(cluster.job_name, 'cluster.job_name')}",
        f"--output={sbatch_value(log, 'run_dir')}",
        "--open-mode=append",
        f"--nodes={nodes}",
        f"--ntasks-per-node={tasks}",
        f"--cpus-per-task={cluster.cpus_per_rank * (ranks // tasks)}",
    ]
    if cluster.gpus_per_node:
        found.append(f"--gpus-per-node={cluster.gpus_per_node if job.distributed else 1}")
    found += [f"--{key}={getattr(cluster, key)}" for key in ("account", "partition", "qos") if getattr(cluster, key)]
    if cluster.time:
        found.append(f"--time={cluster.time}")
    if job.is_sweep:
        limit = f"%{cluster.max_parallel}" if cluster.max_parallel else ""
        found.append(f"--array=0-{len(job.tasks) - 1}{limit}")
    found.append(f"--signal=B:USR1@{cluster.signal_margin_seconds}")
    found.append("--requeue" if cluster.requeue else "--no-requeue")
    return found + cluster.sbatch


def array(name: str, words: Sequence[str]) -> str:
    """A bash array, a word a line."""
    return "\n".join([f"{name}=(", *(f"  {shlex.quote(word)}" for word in words), ")"])


def render(job: Job) -> str:
    """The whole file."""
    cluster = job.cluster
    parts = [
        "\n".join(["#!/bin/bash", _HEAD.format(script=job.script), *(f"#SBATCH {one}" for one in options(job))]),
        _task(job),
        "\n".join(
            [
                f"work_dir={shlex.quote(job.work_dir)}",
                f"code={shlex.quote(job.code)}",
                f"python={shlex.quote(job.python)}",
                array("container", cluster.container),
            ]
        ),
    ]
    own = [f"module load {shlex.quote(one)}" for one in cluster.modules]
    own += [f"export {name}={shlex.quote(value)}" for name, value in cluster.environment.items()]
    own += cluster.setup
    if own:
        parts.append("\n".join(own))
    parts.append(_START)
    parts.append(_RANKS.format(ranks=_LAUNCH[_kind(job)].format(**_numbers(job))))
    policy = shlex.join(
        f"--{key.replace('_', '-')}={int(getattr(cluster, key))}"
        for key in ("requeue", "max_restarts", "max_failures", "backoff_seconds", "node_failures")
    )
    parts.append(_END.format(policy=policy))
    return "\n\n".join(parts) + "\n"


def _kind(job: Job) -> str:
    return job.cluster.launcher if job.distributed else "one"


def _numbers(job: Job) -> dict[str, object]:
    cluster = job.cluster
    return {
        "nodes": cluster.nodes,
        "ranks": cluster.ranks_per_node,
        "cpus": cluster.cpus_per_rank,
        "node_cpus": cluster.cpus_per_rank * cluster.ranks_per_node,
        "wait": job.wait_seconds,
        "script": job.script,
    }


def _task(job: Job) -> str:
    if not job.is_sweep:
        return f"run_dir={shlex.quote(job.run_dirs[0])}\n" + array("arguments", job.tasks[0])
    lines = ['case "$SLURM_ARRAY_TASK_ID" in']
    for number, (run_dir, words) in enumerate(zip(job.run_dirs, job.tasks, strict=True)):
        lines += [f"{number})", f"run_dir={shlex.quote(run_dir)}", array("arguments", words), ";;"]
    return "\n".join([*lines, "esac"])


_HEAD = """\
# Runs launch/{script}. Written by launch/submit.py; read it, change it, and submit it again with: sbatch THIS_FILE
#"""

_START = """\
# What every start of this job writes lies in a folder of its own: output of each rank, request to stop, outcome.
start="$run_dir/logs/$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}"
mkdir -p "$start" && cd "$work_dir" || exit 1
unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE
export CPT_START_DIR="$start" PYTHONPATH="$code:$code/kernels${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
if [ -z "${SLURM_JOB_END_TIME:-}" ]; then  # Slurm before 23.02 doesn't say
  SLURM_JOB_END_TIME=$(date +%s -d "$(squeue -h -j "$SLURM_JOB_ID" -o %e)" 2>/dev/null) && export SLURM_JOB_END_TIME
fi

# Rendezvous on the first node, where this script runs.
first=$(scontrol show node -o "$SLURMD_NODENAME" | tr ' ' '\\n' | sed -n 's/^NodeAddr=//p')
export MASTER_ADDR="${first:-$(hostname)}" MASTER_PORT="$((20000 + SLURM_JOB_ID % 20000))"

# The signal before the time limit, a preemption and `scancel --signal=USR1 --batch` come to this script alone.
# Launchers would swallow it or kill their ranks, so the ranks look for a file instead.
trap 'touch "$start/stop"' USR1 TERM"""

_RANKS = """\
{ranks} &
while kill -0 $! 2>/dev/null; do wait $!; done  # a signal ends a wait, not the job"""

# Each node puts its own number between the words of the launcher and ours.
_EACH_NODE = """\
srun --nodes={nodes} --ntasks={nodes} --ntasks-per-node=1 --cpus-per-task={node_cpus} --kill-on-bad-exit=0 \\
  --wait={wait} --output="${{start//%/%%}}/node-%n.out" --open-mode=append \\
  bash -c '"${{@:2:$1}}" {rank}="$SLURM_NODEID" "${{@:$1+2}}"' node "${{#launcher[@]}}" "${{launcher[@]}}" \\
  "$code/launch/{script}" "${{arguments[@]}}\""""

_LAUNCH = {
    "torchrun": """\
launcher=("${{container[@]}}" "$python" -m torch.distributed.run --nnodes={nodes} --nproc-per-node={ranks}
  --master-addr="$MASTER_ADDR" --master-port="$MASTER_PORT")
"""
    + _EACH_NODE.replace("{rank}", "--node-rank"),
    "deepspeed": """\
scontrol show hostnames "$SLURM_JOB_NODELIST" | sed 's/$/ slots={ranks}/' >"$start/hostfile"
launcher=("${{container[@]}}" "$python" -m deepspeed.launcher.runner --no_ssh --hostfile="$start/hostfile"
  --master_addr="$MASTER_ADDR" --master_port="$MASTER_PORT")
"""
    + _EACH_NODE.replace("{rank}", "--node_rank"),
    "srun": """\
srun --nodes={nodes} --ntasks-per-node={ranks} --cpus-per-task={cpus} --kill-on-bad-exit=0 --wait={wait} \\
  --output="${{start//%/%%}}/task-%t.out" --open-mode=append \\
  "${{container[@]}}" "$python" "$code/launch/{script}" "${{arguments[@]}}\"""",
    "one": """\
srun --nodes=1 --ntasks=1 --cpus-per-task={cpus} --output="${{start//%/%%}}/task-%t.out" --open-mode=append \\
  "${{container[@]}}" "$python" "$code/launch/{script}" "${{arguments[@]}}\"""",
}

_END = """\
# The ranks have left the outcome in $start; a launcher's exit code says little.
read -r code_of_exit action delay exclude < <(
  "${{container[@]}}" "$python" -m cpt_dist.cluster.requeue --run-dir="$run_dir" --start="$start" \\
    --nodes="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | paste -sd,)" --restarts="${{SLURM_RESTART_COUNT:-0}}" \\
    {policy}
)
if [ "${{action:-stop}}" = requeue ]; then
  trap '' TERM  # Slurm ends this script while it requeues its job
  scontrol requeue "$SLURM_JOB_ID"
  [ "$delay" = 0 ] || scontrol update JobId="$SLURM_JOB_ID" StartTime="now+${{delay}}seconds"
  [ -z "${{exclude:-}}" ] || scontrol update JobId="$SLURM_JOB_ID" ExcNodeList="$exclude"
fi
exit "${{code_of_exit:-1}}\""""
