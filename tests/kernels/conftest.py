"""Triton's interpreter is chosen when a kernel is imported, so what needs it runs in processes of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def interpreted():
    """Runs `python -m MODULE ARGUMENTS` with Triton's interpreter on; gives the finished process."""

    def run(*words, mode="1"):
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        if mode:
            environment["TRITON_INTERPRET"] = mode
        paths = [str(ROOT), str(ROOT / "kernels"), *filter(None, [environment.get("PYTHONPATH")])]
        environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
        return subprocess.run(
            [sys.executable, "-m", *map(str, words)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=540,
            check=False,
        )

    return run
