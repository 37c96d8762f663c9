import json
import os
import pickle

import pytest
import torch
import torch.distributed as dist

from cpt_dist.checkpoint.dcp import SafeReader
from cpt_dist.checkpoint.store import CheckpointStore, Probe
from cpt_dist.errors import UserError


@pytest.fixture(scope="module", autouse=True)
def process_group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def tensors(seed):
    generator = torch.Generator().manual_seed(seed)
    return {f"model.{name}": torch.randn(5, 3, generator=generator) for name in "ab"}


def probe():
    return Probe(torch.arange(4), torch.randn(4, 7))


@pytest.fixture
def store(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=0)
    for step in (3, 12):
        store.save(step, tensors(step), {"step": step}, probe())
    return store


def test_a_saved_checkpoint_loads_bit_equal(store):
    loaded = {name: torch.zeros(5, 3) for name in tensors(12)}
    store.load(12, loaded)
    assert all(loaded[name].equal(value) for name, value in tensors(12).items())
    assert store.trainer(12) == {"step": 12}


def test_pytorchs_own_tools_read_the_store(store, tmp_path):
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    dcp_to_torch_save(store.path(12) / "state", tmp_path / "whole.pt")
    whole = torch.load(tmp_path / "whole.pt", weights_only=True)
    flat = {
        f"{outer}.{name}" if isinstance(inner, dict) else outer: value
        for outer, inner in whole.items()
        for name, value in (inner.items() if isinstance(inner, dict) else [("", inner)])
    }
    assert all(flat[name].equal(value) for name, value in tensors(12).items())


def test_steps_are_in_the_order_of_their_number(store):
    store.save(100, tensors(1), {}, None)
    assert store.steps() == [3, 12, 100]


def test_a_folder_without_a_manifest_is_no_checkpoint(store):
    (store.path(12) / "manifest.json").unlink()
    assert store.newest_whole("refuse") == 3


def test_a_half_written_folder_is_no_checkpoint(store):
    os.rename(store.path(12), store.folder / ".step-00000012.tmp")
    assert store.steps() == [3]
    store.save(12, tensors(12), {}, None)
    assert store.newest_whole("refuse") == 12


FILES = ["state/.metadata", "state/__0_0.distcp", "trainer.json", "probe.safetensors"]


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_is_named_and_the_one_before_is_used_only_if_asked(store, name):
    path = store.path(12) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 4
    path.write_bytes(content)
    with pytest.raises(UserError, match=name):
        store.newest_whole("refuse")
    assert store.newest_whole("previous") == 3


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(store, name):
    (store.path(12) / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        store.verify(12)


def test_pruning_keeps_the_newest(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=2)
    for step in (1, 2, 3, 4):
        store.save(step, tensors(step), {}, None)
    assert store.steps() == [3, 4]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]


def test_saving_a_step_again_replaces_it(store):
    store.save(12, tensors(99), {"again": True}, None)
    store.verify(12)
    assert store.trainer(12) == {"again": True}


def test_a_save_that_fails_leaves_the_older_ones(store, monkeypatch):
    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cpt_dist.checkpoint.store.write_json", no_space)
    with pytest.raises(UserError, match="No space left"):
        store.save(20, tensors(20), {}, None)
    assert store.newest_whole("refuse") == 12


def test_a_disk_that_is_full_while_tensors_are_written_is_said_so(store, monkeypatch):
    def no_space(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.distributed.checkpoint.filesystem._write_item", no_space)
    with pytest.raises(UserError, match="No space left"):
        store.save(20, tensors(20), {}, None)
    assert store.newest_whole("refuse") == 12


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"model.a": torch.zeros(5, 4)}, "shape"), ({"model.c": torch.zeros(1)}, "'model.c' is only in the model")],
)
def test_a_checkpoint_of_another_model_is_refused(store, changed, message):
    with pytest.raises(UserError, match=message):
        store.load(12, tensors(0) | changed)


def test_an_index_that_runs_code_is_not_run(store, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    (store.path(12) / "state" / ".metadata").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError, match="no place in a checkpoint's index"):
        SafeReader(store.path(12) / "state").tensor_shapes()
    assert not (tmp_path / "owned").exists()


def test_the_manifest_lists_every_file(store):
    manifest = json.loads((store.path(12) / "manifest.json").read_text())
    present = {str(p.relative_to(store.path(12))) for p in store.path(12).rglob("*") if p.is_file()}
    assert {entry["path"] for entry in manifest["files"]} == present - {"manifest.json"}
