"""SIGKILL at every kind of write that a save makes: what is found afterwards is whole, and the newest that can be."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cpt_dist.checkpoint.store import CheckpointStore

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import os, signal, sys
import torch, torch.distributed as dist
from cpt_dist.checkpoint.store import CheckpointStore

folder, deadly = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
store = CheckpointStore(__import__("pathlib").Path(folder), keep_last=1)
store.save(1, {"model.a": torch.ones(64, 64)}, {"step": 1}, None)
calls = 0

def counted(function):
    def call(*arguments, **keywords):
        global calls
        calls += 1
        if calls == deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **keywords)
    return call

for name in ("fsync", "replace", "mkdir", "unlink"):
    setattr(os, name, counted(getattr(os, name)))
store.save(2, {"model.a": torch.full((64, 64), 2.0)}, {"step": 2}, None)
print(calls)
"""


def save_and_die(folder, deadly):
    words = [sys.executable, "-c", PROGRAM, str(folder), str(deadly)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def num_calls(tmp_path_factory):
    done = save_and_die(tmp_path_factory.mktemp("whole"), 0)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0])
def test_a_killed_save_leaves_a_whole_checkpoint(tmp_path, num_calls, share):
    done = save_and_die(tmp_path, 1 + round(share * (num_calls - 1)))
    assert done.returncode == -signal.SIGKILL
    store = CheckpointStore(tmp_path)
    step = store.newest_whole("refuse")
    assert step in (1, 2)
    assert store.trainer(step) == {"step": step}
