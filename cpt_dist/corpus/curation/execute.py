"""Runs a stage's units on datatrove's executors: processes of this host, a Slurm array, or Ray.

datatrove starts the tasks and keeps their logs. What is finished is known from our own records, not from its completion
markers: those mean nothing once the number of tasks changes, and a killed task leaves none.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import select
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cpt_dist
from cpt_dist.corpus.curation.job import Job, file_of, is_done
from cpt_dist.corpus.curation.stages import STAGES, Stage
from cpt_dist.errors import UserError
from cpt_dist.files import atomic_write, write_json

os.environ.setdefault("LOGURU_LEVEL", "ERROR")  # read by loguru when it is imported, here and in every task
try:
    from datatrove.executor.local import LocalPipelineExecutor
    from datatrove.executor.slurm import SlurmPipelineExecutor
    from datatrove.pipeline.base import PipelineStep
except ImportError as missing:
    raise UserError(f"curation needs datatrove ({missing}); pip install 'cpt_dist[curate]'") from missing


_LEAST_PAUSE_SECONDS = 1.0
_JOB = "job_id"
"""File with the number of a stage's array job."""
_PROBLEMS = "problems.json"
"""Ending of the file with a unit's problems that are a user's to mend."""


class StageStep(PipelineStep):
    """The step of datatrove that does every `world_size`-th unit of a stage, from `rank` on."""

    type = "CURATION"

    def __init__(self, job: Job, stage: str) -> None:
        super().__init__()
        self.name = stage
        self.job = job

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Do the units; documents go from file to file, so none come in or out here."""
        stage = STAGES[self.name]
        for stem, unit in stage.units(self.job)[rank::world_size]:  # not of those left: tasks begin at different times
            if not is_done(stem):
                with self.track_time("unit"):
                    _do(self.job, stage, stem, unit)
        return iter(())


def _do(job: Job, stage: Stage, stem: Path, unit: Any) -> None:
    """Do a unit; a user's mistake, such as a damaged file, is left in a file for `run_stage`."""
    problems = file_of(stem, _PROBLEMS)
    try:
        stage.do(job, unit)
    except UserError as error:
        write_json(problems, error.problems)
        return
    problems.unlink(missing_ok=True)


class _Local(LocalPipelineExecutor):
    """Processes of this host, whose lines other than errors go to their log files alone.

    datatrove's own way to start them goes through a manager process and a pool: after a kill the first lives on with
    the lock of the folder, and the second waits for ever for a worker that the system killed.
    """

    def run(self) -> None:
        """Run the tasks, in this process if one at a time is asked for; BrokenProcessPool where one was killed."""
        if self.workers == 1:
            for rank in range(self.tasks):
                self._run_for_rank(rank, local_rank=1)  # not 0, whose lines go to standard error too
            return
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        with ProcessPoolExecutor(self.workers, context, _end_with_program, (os.getpid(),)) as pool:
            for one in [pool.submit(self._run_for_rank, rank, 1) for rank in range(self.tasks)]:
                one.result()


def _end_with_program(program: int) -> None:
    """Have this worker killed when the program with this process id ends in any way.

    It would wait for more work for ever: it is a child of the fork server, and that one lives as long as its children.
    """
    try:
        handle = os.pidfd_open(program)
    except ProcessLookupError:  # it has ended already
        os.kill(os.getpid(), signal.SIGKILL)
    else:
        threading.Thread(target=_die_after, args=(handle,), daemon=True).start()


def _die_after(handle: int) -> None:
    """Kill this process once the one behind a pidfd has ended."""
    select.select([handle], [], [])
    os.kill(os.getpid(), signal.SIGKILL)


class _Array(SlurmPipelineExecutor):
    """An array job without the job that merges datatrove's own statistics."""

    def launch_merge_stats(self) -> None:
        """Nothing: the records of units are what counts."""


def run_stage(job: Job, stage: Stage, progress: Any = None) -> None:
    """Do all units of a stage that are left; `progress(done, all, rate)` is called now and then.

    Raises UserError where a task failed, with the place of its log.
    """
    total = len(stage.units(job))
    left = len(stage.left(job))
    if left:
        logs = job.folder / "work" / "logs" / stage.name
        tasks = min(job.pipeline.tasks or _cores(), left)
        with _watched(job, stage, total, progress):
            _EXECUTE[job.pipeline.executor](job, stage, tasks, logs)
    missing = stage.left(job)
    found = [path for stem, _ in stage.units(job) if (path := file_of(stem, _PROBLEMS)).is_file()]
    if problems := sorted({problem for path in found for problem in json.loads(path.read_text(encoding="utf-8"))}):
        raise UserError(problems)
    if missing:
        raise UserError(
            f"curation: {len(missing)} of {total} units of the stage '{stage.name}' were not finished; "
            f"'{job.folder / 'work' / 'logs' / stage.name}' says why; what is finished stays, so run the same again"
        )
    if progress:
        progress(total, total, "")


def _cores() -> int:
    return len(os.sched_getaffinity(0))


@contextmanager
def _watched(job: Job, stage: Stage, total: int, progress: Any) -> Iterator[None]:
    """Report from a thread how many units are done while the executor runs."""
    over = threading.Event()
    began, before = time.monotonic(), total - len(stage.left(job))

    def watch() -> None:
        pause = _LEAST_PAUSE_SECONDS
        while not over.wait(pause):
            asked = time.monotonic()
            done = total - len(stage.left(job))
            pause = max(_LEAST_PAUSE_SECONDS, 20 * (time.monotonic() - asked))  # many units take long to look at
            rate = stage.bytes_of_unit(job) * (done - before) / (time.monotonic() - began) / 1e6
            progress(done, total, f"{rate:.1f} MB/s" if rate else "")

    thread = threading.Thread(target=watch)
    if progress:
        thread.start()
    try:
        yield
    finally:
        over.set()
        if progress:
            thread.join()


def _local(job: Job, stage: Stage, tasks: int, logs: Path) -> None:
    workers = min(job.pipeline.workers or _cores(), tasks)
    executor = _Local(
        [StageStep(job, stage.name)],
        tasks=tasks,
        workers=workers,
        logging_dir=str(logs),
        skip_completed=False,
    )
    try:
        executor.run()
    except BrokenProcessPool as error:
        raise UserError(
            f"curation: a task of the stage '{stage.name}' was killed, likely for want of memory; set "
            "data.curation.workers or data.curation.block_bytes lower and run the same again: what is finished stays"
        ) from error


def _slurm(job: Job, stage: Stage, tasks: int, logs: Path) -> None:
    settings = job.pipeline.slurm
    if (logs / _JOB).is_file():  # of a prepare that was ended while its tasks went on
        _wait_for((logs / _JOB).read_text(encoding="utf-8"), settings.poll_seconds)
        if not stage.left(job):
            return
    programs, package = Path(sys.executable).parent, Path(cpt_dist.__file__).parents[1]
    own = f"export PATH={shlex.quote(str(programs))}:$PATH PYTHONPATH={shlex.quote(str(package))}:$PYTHONPATH"
    executor = _Array(
        [StageStep(job, stage.name)],
        tasks=tasks,
        time=settings.time,
        partition=settings.partition,
        cpus_per_task=settings.cpus_per_task,
        mem_per_cpu_gb=settings.mem_per_cpu_gb,
        workers=job.pipeline.workers or -1,
        job_name=f"curate-{stage.name}",
        qos=None,
        env_command="\n".join(line for line in (settings.env_command, own) if line),
        sbatch_args=dict(settings.sbatch_args),
        logging_dir=str(logs),
        skip_completed=False,
    )
    executor.run()
    with atomic_write(logs / _JOB, "w") as handle:
        handle.write(str(executor.job_id))
    _wait_for(str(executor.job_id), settings.poll_seconds)


def _wait_for(number: str, poll_seconds: float) -> None:
    """Wait until the queue has no task of an array job any more."""
    while True:
        done = subprocess.run(["squeue", "-h", "-j", number], capture_output=True, text=True, check=False)
        if done.returncode and "Invalid job id" not in done.stderr:
            raise UserError(
                f"curation: squeue failed ({done.stderr.strip()}); the job {number} goes on; run again later"
            )
        if not done.stdout.strip():
            return
        time.sleep(poll_seconds)


def _ray(job: Job, stage: Stage, tasks: int, logs: Path) -> None:
    try:
        from datatrove.executor.ray import RayPipelineExecutor
    except ImportError as missing:
        raise UserError(f"executor=ray needs ray ({missing}); pip install 'cpt_dist[ray]'") from missing
    RayPipelineExecutor(
        [StageStep(job, stage.name)],
        tasks=tasks,
        workers=job.pipeline.workers or -1,
        logging_dir=str(logs),
        skip_completed=False,
    ).run()


_EXECUTE = {"local": _local, "slurm": _slurm, "ray": _ray}
