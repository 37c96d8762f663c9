"""Environments of the peers that benchmarks compare with: one each, made on demand from PyPI, pinned.

They are apart because their requirements exclude each other. Each also sees the environment that the benchmark runs
in, for torch and numpy, and changes nothing in it. A peer that can't be installed is reported with pip's last line.
"""

from __future__ import annotations

import subprocess
import sysconfig
import venv
from collections.abc import Mapping
from pathlib import Path

# Without what they ask for where that is torchvision or a cloud's client: gigabytes that the job doesn't touch.
PEERS: dict[str, list[list[str]]] = {
    "megatron-core 0.16.1": [["megatron-core==0.16.1"]],
    "mosaicml-streaming 0.13.0": [
        ["--no-deps", "mosaicml-streaming==0.13.0", "brotli", "python-snappy", "cramjam", "zstd", "catalogue"],
        ["boto3"],
    ],
    "litdata 0.2.76": [["--no-deps", "litdata==0.2.76", "lightning-utilities", "obstore"], ["boto3"]],
    "grain 0.2.18": [["grain==0.2.18"]],
    "datasets 5.2.0": [["datasets==5.2.0"]],
    "litgpt 0.5.13": [
        ["--no-deps", "litgpt==0.5.13", "lightning", "lightning-utilities", "pytorch-lightning"],
        ["jsonargparse[signatures]", "torchmetrics"],
    ],
}
"""Name and version -> arguments of each call of `pip install`."""


def short_name(name: str) -> str:
    """`mosaicml-streaming 0.13.0` -> `mosaicml`: what the peer's folder and its job are called."""
    return name.split()[0].split("-")[0]


def peer_python(name: str, cache: Path, installs: Mapping[str, list[list[str]]] = PEERS) -> Path:
    """The interpreter of a peer's environment under `cache`; raises RuntimeError with the reason where pip fails."""
    folder = cache / short_name(name)
    python, ready = folder / "bin" / "python", folder / ".ready"
    if ready.exists():
        return python
    venv.create(folder, clear=True, symlinks=True, with_pip=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    for arguments in installs[name]:
        command = [str(python), "-m", "pip", "install", "-q", "--no-compile", *arguments]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            raise RuntimeError((result.stderr.strip().splitlines() or ["pip failed"])[-1])
    ready.touch()
    return python
