"""Virtual environments of the peers that benchmarks compare with, made on demand: one each, pinned, from PyPI.

They are apart because their requirements exclude each other. A peer that can't be installed is reported with pip's
last line; it isn't left out in silence.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PEERS = {
    "megatron-core 0.16.1": ["megatron-core==0.16.1"],
    "grain 0.2.18": ["grain==0.2.18"],
    "datasets 5.2.0": ["datasets==5.2.0"],
}
"""Name and version -> what pip installs."""


def peer_python(name: str, cache: Path) -> Path:
    """The interpreter of a peer's environment under `cache`; raises RuntimeError with the reason where pip fails."""
    folder = cache / name.split()[0].split("-")[0]
    python, ready = folder / "bin" / "python", folder / ".ready"
    if ready.exists():
        return python
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    result = subprocess.run(
        [str(python), "-m", "pip", "install", "-q", "--no-compile", *PEERS[name]], capture_output=True, text=True
    )
    if result.returncode:
        lines = result.stderr.strip().splitlines() or ["pip failed"]
        raise RuntimeError(lines[-1])
    ready.touch()
    return python
