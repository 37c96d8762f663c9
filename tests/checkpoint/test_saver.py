"""Saves behind training: the same checkpoint as one in front of it, taken at the moment of the call."""

import threading
import time
from concurrent.futures import Future
from unittest.mock import Mock

import psutil
import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from cpt_dist.checkpoint.saver import Saver
from cpt_dist.checkpoint.staging import Staging
from cpt_dist.checkpoint.store import CheckpointStore
from cpt_dist.engine.flat_shard import FlatShard
from cpt_dist.errors import UserError
from cpt_dist.process_end import SAVING_THREAD
from cpt_dist.training.callbacks import Checkpoints


@pytest.fixture(scope="module", autouse=True)
def process_group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def tensors():
    mesh = init_device_mesh("cpu", (1,))
    return {
        "model.plain": torch.randn(5, 3),
        "model.flat": FlatShard(torch.randn(12), (3, 4), 0),
        "model.sharded": distribute_tensor(torch.randn(4, 3), mesh, [Shard(0)]),
    }


class Held:
    """A store whose writes wait for `go`."""

    def __init__(self, folder, monkeypatch):
        self.store, self.go = CheckpointStore(folder), threading.Event()
        save = self.store.save
        monkeypatch.setattr(self.store, "save", lambda *arguments: (self.go.wait(20), save(*arguments))[1])


@pytest.fixture
def held(tmp_path, monkeypatch):
    return Held(tmp_path, monkeypatch)


def test_a_save_holds_the_values_of_its_moment_whatever_training_does_meanwhile(held, tensors):
    expected = {name: getattr(t, "local", t).clone() for name, t in tensors.items()}
    saver = Saver(held.store, asynchronous=True)
    trainer = {"position": 12, "totals": {"seconds": 1}}
    saver.save(3, tensors, trainer, None)
    assert held.store.steps() == []
    trainer["totals"]["seconds"] = 2
    for tensor in tensors.values():
        getattr(tensor, "local", tensor).zero_()
    held.go.set()
    saver.wait()
    assert held.store.trainer(3)["totals"] == {"seconds": 1}
    loaded = {name: torch.zeros(tensor.shape) for name, tensor in tensors.items()}
    held.store.load(3, loaded)
    for name, value in expected.items():
        assert loaded[name].equal(
            value.full_tensor() if hasattr(value, "full_tensor") else value.view(loaded[name].shape)
        )


def test_the_next_save_waits_and_buffers_are_used_again(held, tensors):
    saver = Saver(held.store, asynchronous=True)
    saver.save(1, tensors, {}, None)
    buffers = {name: buffer.data_ptr() for name, buffer in saver._staging._buffers.items()}
    threading.Timer(0.3, held.go.set).start()
    begin = time.perf_counter()
    saver.save(2, tensors, {}, None, notes={"accounts": 7})
    assert time.perf_counter() - begin > 0.25
    assert held.store.steps()[0] == 1
    saver.wait()
    assert {name: buffer.data_ptr() for name, buffer in saver._staging._buffers.items()} == buffers
    first, second = saver.reports()
    assert (first.step, second.step, second.notes) == (1, 2, {"accounts": 7})
    assert first.stall_seconds < first.write_seconds
    assert second.stall_seconds > 0.25


def test_no_thread_of_a_save_is_left_when_it_has_been_waited_for(held, tensors, monkeypatch):
    set_result = Future.set_result
    monkeypatch.setattr(Future, "set_result", lambda *arguments: (set_result(*arguments), time.sleep(0.3)))
    saver = Saver(held.store, asynchronous=True)
    saver.save(1, tensors, {}, None)
    held.go.set()
    saver.wait()
    assert SAVING_THREAD not in [thread.name for thread in threading.enumerate()]


def test_buffers_made_behind_training_are_those_of_the_first_save(held, tensors):
    saver = Saver(held.store, asynchronous=True)
    saver.prepare(tensors)
    saver.wait()
    buffers = {name: buffer.data_ptr() for name, buffer in saver._staging._buffers.items()}
    assert buffers.keys() == tensors.keys()
    held.go.set()
    saver.save(1, tensors, {}, None)
    saver.wait()
    assert {name: buffer.data_ptr() for name, buffer in saver._staging._buffers.items()} == buffers
    assert "staging" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.parametrize(("asynchronous", "free"), [(True, 100), (False, 1 << 40)])
def test_no_buffers_are_made_without_memory_or_for_saves_that_stop_training(
    held, tensors, monkeypatch, asynchronous, free
):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": free}))
    saver = Saver(held.store, asynchronous)
    saver.prepare(tensors)
    saver.wait()
    assert saver._staging._buffers == {}


@pytest.mark.parametrize(("every_steps", "prepared"), [(2, 1), (1, 0)])
def test_training_prepares_the_first_save_after_its_first_step(every_steps, prepared):
    saver, checkpoints = Mock(reports=list), Checkpoints()
    run = Mock(saver=saver, rewind_to=None, refusal=None, finished=False, position=1)
    run.order.stage_starts = (0, 80)
    run.config.checkpoint.every_steps = every_steps
    checkpoints.save = Mock()
    checkpoints.on_start(run)
    for step in (1, 2, 3):
        checkpoints.after_step(run, Mock(step=step, save_failed=False, skipped="", stop_requested=False))
    assert saver.prepare.call_count == prepared


def test_a_failure_behind_training_is_known_and_raised_once(tmp_path, tensors, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    store = CheckpointStore(tmp_path)
    saver = Saver(store, asynchronous=True)
    saver.save(1, tensors, {}, None)
    saver.wait()
    monkeypatch.setattr("cpt_dist.checkpoint.commit.write_json", full)
    saver.save(2, tensors, {}, None)
    while not saver.failed:
        time.sleep(0.01)
    assert [report.step for report in saver.reports()] == [1]
    with pytest.raises(UserError, match=r"step 2 was not written.*No space left"):
        saver.save(3, tensors, {}, None)
    assert not saver.failed
    assert store.newest_whole("refuse") == 1


def test_without_memory_for_a_copy_the_save_stops_training_and_says_so(held, tensors, monkeypatch, capsys):
    held.go.set()
    little = type("Memory", (), {"available": 100})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: little)
    saver = Saver(held.store, asynchronous=True)
    saver.save(1, tensors, {}, None)
    assert held.store.steps() == [1]
    assert not saver.reports()[0].asynchronous
    assert "too little host memory" in capsys.readouterr().out


def test_a_tensor_that_is_no_slice_is_not_taken_for_one():
    mesh = init_device_mesh("cpu", (1,))
    with pytest.raises(ValueError, match="no slice"):
        Staging().copy({"model.a": distribute_tensor(torch.randn(4, 3), mesh, [Shard(1)])})
