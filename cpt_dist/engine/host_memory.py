"""Freed memory of the C library that stays with the process for the next step.

glibc takes a large block straight from the kernel and gives it back when it is freed. A training step on a CPU frees
and takes gigabytes of the same sizes, so the kernel would clear the same pages for it again at every step.
"""

from __future__ import annotations

import ctypes

# Numbers of mallopt(3); glibc and no other C library has them.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_NEVER = -1
_TOP_PAD_BYTES = 64 * 2**20
"""What the heap grows by beyond a request, so that it grows seldom."""


def keep_freed_memory() -> bool:
    """Keep what this process frees, from now on; whether its C library can. A process needs its peak all the same."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        mallopt = libc.mallopt
        libc.gnu_get_libc_version  # noqa: B018 - musl has a mallopt that does nothing, under the same file name
    except (OSError, AttributeError):
        return False
    settings = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: _NEVER, _M_TOP_PAD: _TOP_PAD_BYTES}
    return all(mallopt(name, value) for name, value in settings.items())
