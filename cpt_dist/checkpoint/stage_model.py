"""Models of stages, made beside training: python -m cpt_dist.checkpoint.stage_model RUN_DIR STEP OUT

A process of its own reads the checkpoint of a stage's end and writes the model, as launch/consolidate.py does, so no
rank waits for it. What was killed is begun again, and goes on where it was.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

from omegaconf import OmegaConf

from cpt_dist.checkpoint.consolidate import consolidate_run
from cpt_dist.config import CptConfig
from cpt_dist.errors import UserError

_OF_THE_JOB = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class StageModels:
    """The consolidations that this process has begun, one at a time in the order of the stages."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._waiting: list[tuple[str, int]] = []
        self._running: tuple[str, int, subprocess.Popen[bytes], IO[bytes]] | None = None
        self._known: set[str] = set()

    def folder(self, stage: str) -> Path:
        """Where the model of a stage lies."""
        return self._run_dir / "stage_models" / stage

    def is_made(self, stage: str) -> bool:
        """Whether the model is there; it appears whole."""
        return (self.folder(stage) / "config.json").is_file()

    def begin(self, stage: str, step: int) -> None:
        """Consolidate the checkpoint of `step` in the background, unless this process has begun with that."""
        if stage in self._known:
            return
        self._known.add(stage)
        self._waiting.append((stage, step))
        self._next()

    def finished(self, wait: bool = False) -> list[tuple[str, int, str]]:
        """(stage, step, problem) of what has ended since the last call; the problem is empty where the model is there.

        With `wait`, of all that was begun.
        """
        ended = []
        while self._running is not None and (wait or self._running[2].poll() is not None):
            stage, step, process, log = self._running
            code = process.wait()
            log.close()
            self._running = None
            said = "" if code == 0 else self._said(stage, code)
            ended.append((stage, step, said))
            self._next()
        return ended

    def _next(self) -> None:
        if self._running is not None or not self._waiting:
            return
        stage, step = self._waiting.pop(0)
        out = self.folder(stage)
        out.parent.mkdir(parents=True, exist_ok=True)
        log = open(out.with_name(f"{stage}.log"), "wb")  # noqa: SIM115 - closed when the process has ended
        words = [sys.executable, "-m", "cpt_dist.checkpoint.stage_model", str(self._run_dir), str(step), str(out)]
        environment = {name: value for name, value in os.environ.items() if name not in _OF_THE_JOB}
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        self._running = (stage, step, process, log)

    def _said(self, stage: str, code: int) -> str:
        path = self.folder(stage).with_name(f"{stage}.log")
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"stage '{stage}': its model was not made (exit code {code}): {lines[-1] if lines else ''}; see {path}"


def main(run_dir: str, step: str, out: str) -> None:
    """Consolidate as the run's saved configuration says, but for step and folder."""
    loaded = OmegaConf.load(Path(run_dir) / "config.yaml")
    config: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(CptConfig), loaded))
    config.run_dir, config.consolidate.step, config.consolidate.out = run_dir, step, out
    consolidate_run(config)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except UserError as mistake:
        print("\n".join(mistake.problems), file=sys.stderr)
        sys.exit(2)
