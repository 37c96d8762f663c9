"""The folder of one start of a batch job, in the run directory: output of every rank, stop file, outcome.

The batch script makes it and names it in CPT_START_DIR; without that variable nothing here does anything. Launchers
change exit codes (torchrun makes every failure 1), so the outcome of the job is a file.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

VARIABLE = "CPT_START_DIR"
STOP = "stop"
OUTCOME = "outcome"


def start_folder(environ: Mapping[str, str]) -> Path | None:
    """The folder of this start, if a batch script made one."""
    return Path(environ[VARIABLE]) if environ.get(VARIABLE) else None


def redirect_output(environ: Mapping[str, str]) -> None:
    """Send this process's standard output and error, those of its libraries too, to rank-00000.out of the start."""
    folder = start_folder(environ)
    if folder is None:
        return
    path = folder / f"rank-{int(environ.get('RANK', 0)):05d}.out"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as error:
        print(f"warning: {path}: {error.strerror}; the output stays here", file=sys.stderr, flush=True)
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def record_outcome(environ: Mapping[str, str], code: int, reason: str) -> None:
    """Write how the job ends, such as `75 time limit`; the first rank that says so wins."""
    folder = start_folder(environ)
    if folder is None:
        return
    try:
        with open(folder / OUTCOME, "x", encoding="utf-8") as handle:
            handle.write(f"{code} {reason}\n")
    except FileExistsError:
        return
    except OSError as error:
        print(f"warning: {folder / OUTCOME}: {error.strerror}; it is: {code} {reason}", file=sys.stderr, flush=True)


def read_outcome(folder: Path) -> tuple[int, str] | None:
    """Exit code and reason of a start; None where it ended without saying so."""
    path = folder / OUTCOME
    words = path.read_text(encoding="utf-8").split(maxsplit=1) if path.is_file() else []
    return (int(words[0]), words[1].strip() if len(words) > 1 else "") if words else None
