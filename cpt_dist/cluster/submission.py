"""Submitting a run to Slurm: the jobs of a request, their files in the run directory, sbatch.

`jobs_of` is a pure function of the request and the configuration; `submit` copies the code, writes the files and calls
sbatch with a list of words, never a shell.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import xxhash

from cpt_dist.cluster.request import Request, override, task_folder
from cpt_dist.cluster.slurm_script import Job, render
from cpt_dist.config import CptConfig
from cpt_dist.errors import UserError
from cpt_dist.files import atomic_write

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("cpt_dist", "kernels", "launch", "configs")
SUFFIXES = (".py", ".yaml", ".j2", ".json")
_CONFIG_DIR = re.compile(r"--config-dir=(.*)", re.DOTALL)


def jobs_of(request: Request, config: CptConfig, code: Path, work_dir: Path) -> list[Job]:
    """The jobs, in the order in which they follow each other.

    `code` is the folder of the code that they run, `work_dir` where relative paths of the request begin.
    """
    cluster = config.cluster
    base = (work_dir / config.run_dir).resolve()
    if not cluster.job_name:
        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", base.name).strip("-.") or "cpt"
        cluster = dataclasses.replace(cluster, job_name=name)
    words = [word for word in request.words if not word.startswith("run_dir=")]
    run_dirs = [base]
    if request.is_sweep:
        run_dirs = [base / task_folder(number, one) for number, one in enumerate(request.sweep)]

    def job(name: str, script: str, distributed: bool, tasks: list[list[str]]) -> Job:
        return Job(
            name=name,
            script=script,
            tasks=tasks,
            run_dirs=[str(path) for path in run_dirs],
            log_dir=str(base / "logs"),
            work_dir=str(work_dir.resolve()),
            code=str(code),
            python=cluster.python or ("python" if cluster.container else sys.executable),
            distributed=distributed,
            wait_seconds=round(config.engine.timeout_seconds) + 60,
            cluster=cluster,
        )

    def train(name: str, *more: str) -> Job:
        pairs = zip(request.sweep, run_dirs, strict=True)
        return job(
            name, "train.py", True, [[*words, *own, override("run_dir", str(path)), *more] for own, path in pairs]
        )

    if "stages" in cluster.chain:
        jobs = [train(f"train-{i}", override("stop_after_stage", one.name)) for i, one in enumerate(config.stages)]
    else:
        jobs = [train("train")]
    for name in ("consolidate", "evaluate"):
        if name in cluster.chain:
            jobs.append(job(name, f"{name}.py", False, [[override("run_dir", str(path))] for path in run_dirs]))
    return jobs


def submit(request: Request, config: CptConfig) -> list[str]:
    """Show the batch files of the request and, unless it is a dry run, write and submit them; the numbers of the jobs.

    Raises UserError where sbatch refuses.
    """
    if config.cluster.name != "slurm":
        raise UserError(f"cluster.name: '{config.cluster.name}' is nothing to submit to; add cluster=slurm")
    work_dir, base = Path.cwd(), Path(config.run_dir).resolve()
    code = base / "code" / code_fingerprint() if config.cluster.snapshot else ROOT
    request = _with_config_folders(request, code, config.cluster.snapshot and not request.dry_run)
    texts = [(job, render(job)) for job in jobs_of(request, config, code, work_dir)]
    for job, text in texts:
        print(f"==> {base / 'slurm' / job.name}.sbatch <==\n{text}", flush=True)
    if request.dry_run:
        return []
    if config.cluster.snapshot:
        copy_code(ROOT, code)
    numbers: list[str] = []
    for folder in (base / "slurm", base / "logs"):
        folder.mkdir(parents=True, exist_ok=True)
    for job, text in texts:
        path = base / "slurm" / f"{job.name}.sbatch"
        with atomic_write(path, "w") as handle:
            handle.write(text)
        before = numbers[-1:] or config.cluster.after
        numbers.append(_sbatch(path, before, same_task=bool(numbers) and job.is_sweep))
        print(f"job {numbers[-1]}: {path}", flush=True)
    return numbers


def _sbatch(path: Path, before: list[str], same_task: bool) -> str:
    words = ["sbatch", "--parsable"]
    if before:
        kind = "aftercorr" if same_task else "afterok"
        words += [f"--dependency={kind}:{':'.join(before)}", "--kill-on-invalid-dep=yes"]
    try:
        done = subprocess.run([*words, str(path)], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UserError("there is no sbatch here; submit on a login node, or add --dry-run to look only") from None
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}, no message"
        raise UserError(f"{shlex.join(words)} {path}: {said}; mend that, or add --dry-run to look only")
    return done.stdout.strip().split(";")[0]


def _source_files(root: Path) -> Iterable[Path]:
    for name in COPIED:
        yield from sorted(path for path in (root / name).rglob("*") if path.suffix in SUFFIXES)


def code_fingerprint(root: Path = ROOT) -> str:
    """Twelve hex digits of the names and contents of the code's files."""
    digest = xxhash.xxh3_64()
    for path in _source_files(root):
        digest.update(f"{path.relative_to(root)}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def copy_code(root: Path, target: Path) -> None:
    """Copy the code's files to `target`, whole or not at all; a copy that is there stays."""
    if target.exists():
        return
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    for path in _source_files(root):
        copied = temporary / path.relative_to(root)
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copied)
    temporary.rename(target)


def _with_config_folders(request: Request, code: Path, copy: bool) -> Request:
    """The request with --config-dir=FOLDER of the user made absolute, or pointed at a copy beside the code's."""
    words = []
    for word in request.words:
        match = _CONFIG_DIR.fullmatch(word)
        if match is None:
            words.append(word)
            continue
        folder = Path(match[1]).resolve()
        digest = xxhash.xxh3_64()
        for path in sorted(folder.rglob("*.yaml")):
            digest.update(f"{path.relative_to(folder)}\0".encode())
            digest.update(path.read_bytes())
        target = code.with_name(f"configs-{digest.hexdigest()[:12]}")
        if code != ROOT:
            if copy and not target.exists():
                shutil.copytree(folder, target)
            folder = target
        words.append(f"--config-dir={folder}")
    return dataclasses.replace(request, words=words)
