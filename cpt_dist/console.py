"""Where tables are printed."""

from __future__ import annotations

import sys

from rich.console import Console

WIDTH_OF_FILES = 132


def output_console() -> Console:
    """Standard output: as wide as the terminal, and wide enough for tables where it goes into a file or a pipe."""
    return Console(width=None if sys.stdout.isatty() else WIDTH_OF_FILES)
