"""The steps of a study: commands that run once, each with its output in a log and its time on record.

A step that is done is not run again, so an interrupted study goes on; one whose command has changed since is refused.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from cpt_dist.console import output_console
from cpt_dist.errors import UserError
from cpt_dist.files import write_json

ROOT = Path(__file__).resolve().parents[1]


class Steps:
    """Runs the steps of one study, which keeps everything in the folder `out`."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.seconds: dict[str, float] = {}
        self.commands: dict[str, str] = {}
        self._console = output_console()
        for name in ("steps", "logs"):
            (out / name).mkdir(parents=True, exist_ok=True)

    def launch(self, name: str, script: str, *words: str, processes: int = 0) -> None:
        """Run launch/`script` with these words; by torchrun where `processes` is not 0."""
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        environment = dict(os.environ) | ({"OMP_NUM_THREADS": "1"} if processes else {})
        start = [sys.executable, *(torchrun if processes else [])]
        shown = ["torchrun", "--nproc-per-node", str(processes)] if processes else ["python"]

        def run() -> None:
            with open(self.out / "logs" / f"{name}.txt", "w", encoding="utf-8") as log:
                command = [*start, f"launch/{script}", *words]
                done = subprocess.run(
                    command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, check=False
                )
            if done.returncode:
                raise UserError(f"step '{name}' ended with exit code {done.returncode}; '{log.name}' says why")

        self.once(name, shlex.join([*shown, f"launch/{script}", *words]), run)

    def once(self, name: str, what: str, run: Callable[[], Any]) -> None:
        """Do `run`, described by `what`, unless it is done. Raises UserError where `what` was another then."""
        path = self.out / "steps" / f"{name}.json"
        if path.is_file():
            record = json.loads(path.read_text(encoding="utf-8"))
            if record["what"] != what:
                raise UserError(
                    f"step '{name}' in '{self.out}' was '{record['what']}' and is '{what}' now; give another --out, or "
                    "remove the folder"
                )
            self._console.print(Text(f"{name}: was done in {record['seconds']:.0f} s"))
        else:
            self._console.print(Text(f"{name}: {what}"), soft_wrap=True)
            begin = time.perf_counter()
            run()
            record = {"what": what, "seconds": time.perf_counter() - begin}
            write_json(path, record)
        self.seconds[name], self.commands[name] = record["seconds"], what


def words_of(settings: dict[str, Any]) -> Sequence[str]:
    """Settings as words of a command line; lists and mappings as Hydra writes them."""
    return [f"{key}={_value(value)}" for key, value in settings.items()]


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_value(one)}" for key, one in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(_value, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)
