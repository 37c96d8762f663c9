"""Promises of the pool: memory comes back when nothing refers to it, and never before."""

import gc

import numpy as np
import pytest
import torch

from cpt_dist.data import blocks
from cpt_dist.data.blocks import Blocks


def address(array):
    return array.__array_interface__["data"][0]


def test_memory_that_nobody_refers_to_is_lent_again():
    pool = Blocks()
    first = address(pool.array(4000).reshape(4, 1000))
    others = [np.empty(4096, dtype=np.int64) for _ in range(3)]  # what malloc would give out again
    assert address(pool.array(3600)) == first
    assert first not in map(address, others)


KEPT = {
    "row": lambda columns: columns[1],
    "slice of a slice": lambda columns: columns[2][10:][5:9],
    "tensor": lambda columns: torch.from_numpy(columns[0]),
    "view of a tensor": lambda columns: torch.from_numpy(columns[0])[3:7].view(2, 2),
    "detached alias": lambda columns: torch.from_numpy(columns[3]).detach(),
    "numpy of a tensor": lambda columns: torch.from_numpy(columns[0])[5:].numpy(),
    "memoryview": lambda columns: memoryview(columns[0]),
    "storage": lambda columns: torch.from_numpy(columns[0]).untyped_storage(),
}


@pytest.mark.parametrize("kept", KEPT.values(), ids=KEPT.keys())
def test_memory_that_anything_looks_at_is_not_lent_again(kept):
    pool = Blocks()
    columns = pool.array(4000).reshape(4, 1000)
    columns[:] = 7
    first, look = address(columns), kept(columns)
    del columns
    gc.collect()
    other = pool.array(4000).reshape(4, 1000)
    assert address(other) != first
    other[:] = 8
    values = look if isinstance(look, np.ndarray | torch.Tensor) else np.frombuffer(bytes(look), dtype=np.int64)
    assert set(values.ravel().tolist()) == {7}


def test_little_free_memory_is_kept(monkeypatch):
    monkeypatch.setattr(blocks, "_MOST_FREE_BYTES", 3 * 8192)
    pool = Blocks()
    lent = [pool.array(1024) for _ in range(5)]
    assert pool._free_bytes == 0
    del lent
    assert pool._free_bytes == 3 * 8192
