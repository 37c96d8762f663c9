"""How a process ends while a thread of it may still be in torch's code.

Python's teardown ends a daemon thread when it next asks for the interpreter's lock. In C++ code, where such a thread
can't be unwound, that aborts the whole process: exit code -6 in place of the one that a launcher waits for.
"""

from __future__ import annotations

import os
import sys
import threading
import typing

SAVING_THREAD = "checkpoint"
"""Name of the thread that writes a checkpoint behind training."""


def end_process(code: int) -> typing.NoReturn:
    """Leave with this exit code; without teardown where a save that was given up still runs."""
    if any(thread.name == SAVING_THREAD for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
