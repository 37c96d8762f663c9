"""Memory that a training process frees and takes again."""

import subprocess
import sys

import pytest

from cpt_dist.engine.host_memory import keep_freed_memory

PAGES = 64 * 2**20 // 4096
ROUNDS = 16

TAKE_AGAIN = f"""
import resource, torch
{{first}}
for number in range(2 * {ROUNDS}):
    if number == {ROUNDS}:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones({PAGES} * 4096 // 4)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
KEEP = "from cpt_dist.engine.host_memory import keep_freed_memory; assert keep_freed_memory()"


def faults_of_blocks(first: str) -> int:
    """Of `ROUNDS` blocks of `PAGES` pages, each freed before the next, after as many before them.

    glibc keeps the ends of the first few apart.
    """
    code = TAKE_AGAIN.format(first=first)
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not keep_freed_memory(), reason="the C library of this machine isn't glibc")
def test_blocks_that_were_freed_come_back_without_page_faults() -> None:
    assert faults_of_blocks(KEEP) < PAGES
    assert faults_of_blocks("") > PAGES * (ROUNDS - 1), "the test measures nothing: huge pages?"
