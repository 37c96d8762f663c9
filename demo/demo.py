"""The main job on real input, from nothing to a report: python demo/demo.py (`make demo` installs first).

It fetches the base model and writes the corpora, then runs the commands that a user would type, and shows each:
prepare, two-process ZeRO-3 training, a real `kill -9` in the middle, the resume with the other engine, consolidation,
evaluation. It prints what it measured and claims nothing else. Running it again keeps the model and the corpora.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from rich.table import Table

from cpt_dist.console import output_console

ROOT = Path(__file__).resolve().parents[1]
RUN = ROOT / "runs" / "demo"
KILL_AFTER_STEP = 6
# torchrun sets it to 1 with a warning of five lines; a rank chooses its threads itself.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": str(os.cpu_count())}
BINARIES = Path(sys.executable).parent
CONSOLE = output_console()


def shown(words: list[str]) -> str:
    """The command as a user with the environment activated would type it."""
    return shlex.join([Path(words[0]).name, *words[1:]])


def run(*words: str) -> float:
    """Run a command, let its output through, and give the seconds it took. Ends the demo if it fails."""
    CONSOLE.rule(f"$ {shown(list(words))}", align="left")
    begin = time.monotonic()
    done = subprocess.run(words, cwd=ROOT, env=ENVIRONMENT, check=False)
    if done.returncode:
        sys.exit(f"demo: '{shown(list(words))}' ended with exit code {done.returncode}")
    return time.monotonic() - begin


def last_step() -> int:
    """The newest step in the run's metrics."""
    path = RUN / "metrics.jsonl"
    if not path.is_file():
        return 0
    whole_lines = path.read_text().rpartition("\n")[0].splitlines()
    steps = [record["step"] for record in map(json.loads, whole_lines) if record["kind"] == "step"]
    return steps[-1] if steps else 0


def run_and_kill(*words: str) -> None:
    """Run a command and kill all its processes with SIGKILL once training has passed `KILL_AFTER_STEP`."""
    CONSOLE.rule(f"$ {shown(list(words))}", align="left")
    process = subprocess.Popen(words, cwd=ROOT, env=ENVIRONMENT, start_new_session=True)
    while last_step() < KILL_AFTER_STEP:
        if process.poll() is not None:
            sys.exit(f"demo: '{shown(list(words))}' ended before step {KILL_AFTER_STEP}")
        time.sleep(0.2)
    kill_tree(process.pid)
    process.wait()
    CONSOLE.print(f"[bold red]kill -9[/] after step {last_step()}: every process of the job is gone")


def kill_tree(pid: int) -> None:
    """SIGKILL a process and all its descendants, in whatever process group they are."""
    import psutil

    parent = psutil.Process(pid)
    for process in [parent, *parent.children(recursive=True)]:
        try:
            os.kill(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def final_table(seconds: float) -> None:
    """What the run gained, forgot, read and how fast, from its own files."""
    report = json.loads((RUN / "report.json").read_text())
    tokens = {source["source"]: source for source in report["run"]["sources"]}
    table = Table(title="SmolLM2-135M on ICD-10-CM, replaying State of the Union addresses; bits per byte, held out")
    for heading in ("source", "role", "before", "after", "change", "outcome", "tokens planned", "realised"):
        table.add_column(heading, justify="left" if heading in ("source", "role", "outcome") else "right")
    for source in report["sources"]:
        counts = tokens[source["source"]]
        table.add_row(
            source["source"],
            source["role"],
            with_interval(source["base"], "{:.4f}"),
            with_interval(source["adapted"], "{:.4f}"),
            with_interval(source["difference"], "{:+.4f}"),
            source["outcome"],
            f"{counts['planned_tokens']:,.0f}",
            f"{counts['realised_tokens']:,}",
        )
    CONSOLE.rule("result", align="left")
    CONSOLE.print(table)
    run_facts = report["run"]
    CONSOLE.print(
        f"training: {run_facts['steps']} steps, {run_facts['tokens']:,} tokens, "
        f"median {run_facts['tokens_per_second']:.0f} tokens/s on 2 processes; "
        f"{run_facts['lost_steps']} steps were lost to the kill and made again"
    )
    CONSOLE.print(f"model:  {RUN.relative_to(ROOT)}/model")
    CONSOLE.print(f"report: {RUN.relative_to(ROOT)}/report.html (and .md, .json)")
    CONSOLE.print(f"the demo took {seconds:.0f} s after the base model was there")


def with_interval(estimate: dict[str, float | None], form: str) -> str:
    """A value and its interval below it, where there is one."""
    low, high = estimate["low"], estimate["high"]
    interval = "" if low is None else f"\n[{form.format(low)}, {form.format(high)}]"
    return form.format(estimate["value"]) + interval


def main() -> None:
    """The whole way."""
    python = sys.executable
    run(python, "demo/base_model.py", "runs/cache/smollm2-135m")
    begin = time.monotonic()
    run(python, "demo/corpora.py", "runs/cache/corpora")
    shutil.rmtree(RUN, ignore_errors=True)
    run(python, "launch/prepare.py", "experiment=demo")
    run_and_kill(str(BINARIES / "deepspeed"), "--num_gpus", "2", "launch/train.py", "experiment=demo", "engine=zero3")
    run(str(BINARIES / "torchrun"), "--nproc-per-node", "2", "launch/train.py", "experiment=demo", "engine=fsdp")
    run(python, "launch/consolidate.py", "run_dir=runs/demo")
    run(python, "launch/evaluate.py", "run_dir=runs/demo")
    final_table(time.monotonic() - begin)


if __name__ == "__main__":
    main()
