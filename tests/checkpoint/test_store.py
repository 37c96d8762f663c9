import json
import os
import pickle
import shutil
import subprocess

import pytest
import torch
import torch.distributed as dist
import xxhash

from cpt_dist.checkpoint import commit
from cpt_dist.checkpoint.dcp import SafeReader
from cpt_dist.checkpoint.dcp_index import dcp_sources
from cpt_dist.checkpoint.integrity import Share
from cpt_dist.checkpoint.retention import Retention
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


def flip(path, place=None):
    content = bytearray(path.read_bytes())
    content[len(content) // 3 if place is None else place] ^= 4
    path.write_bytes(content)


FILES = ["state/.metadata", "state/__0_0.distcp", "trainer.json", "probe.safetensors"]


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_is_named_and_the_one_before_is_used_only_if_asked(store, name):
    path = store.path(12) / name
    flip(path)
    with pytest.raises(UserError, match=name):
        store.newest_whole("refuse")
    assert store.newest_whole("previous") == 3


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(store, name):
    (store.path(12) / name).unlink()
    with pytest.raises(UserError, match=f"{name} \\(written by rank 0\\) is missing"):
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

    monkeypatch.setattr("cpt_dist.checkpoint.commit.write_json", no_space)
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


def test_any_flipped_byte_of_a_manifest_is_found(store):
    path = store.path(12) / "manifest.json"
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole)
        flip(path, place)
        if path.read_bytes()[place : place + 1].isspace() and whole[place : place + 1].isspace():
            continue  # another space means the same
        with pytest.raises(UserError):
            store.verify(12)
    path.write_bytes(whole)
    store.verify(12)


@pytest.mark.parametrize("block_bytes", [16, 1 << 24])
def test_checksums_taken_while_files_are_written_are_those_of_the_files(store, monkeypatch, block_bytes):
    monkeypatch.setattr("cpt_dist.checkpoint.integrity.BLOCK_BYTES", block_bytes)
    store.save(20, tensors(20) | {"optimizer.exp_avg.a": torch.randn(700_000)}, {}, None)
    for entry in store.manifest(20)["files"]:
        content = (store.path(20) / entry["path"]).read_bytes()
        blocks = [content[at : at + block_bytes] for at in range(0, len(content), block_bytes)]
        assert (entry["bytes"], entry["xxh3"]) == (len(content), xxhash.xxh3_64_hexdigest(content))
        assert entry["blocks"] == [xxhash.xxh3_64_hexdigest(block) for block in blocks]


def test_the_model_lies_together_in_front_of_the_moments(store):
    names = ["model.a", "optimizer.exp_avg.a", "model.b", "optimizer.exp_avg.b"]
    store.save(20, {name: torch.randn(30) for name in names}, {}, None)
    places = {name: source.pieces[0].offset for name, source in dcp_sources(store.path(20) / "state").items()}
    assert sorted(places, key=places.__getitem__)[:2] == ["model.a", "model.b"]


def test_a_file_that_lost_its_end_while_the_save_went_on_makes_it_fail(store, monkeypatch):
    dcp_save = commit.dcp.save

    def save_and_cut(*arguments, **keywords):
        dcp_save(*arguments, **keywords)
        os.truncate(store.folder / ".step-00000020.tmp" / "state" / "__0_0.distcp", 10)

    monkeypatch.setattr(commit.dcp, "save", save_and_cut)
    with pytest.raises(UserError, match=r"step 20 was not written.*__0_0.distcp has 10 bytes, \d+ were written"):
        store.save(20, tensors(20), {}, None)
    assert store.steps() == [3, 12]


def test_a_sampled_check_finds_what_lies_in_its_blocks_and_reads_no_others(store, monkeypatch):
    monkeypatch.setattr("cpt_dist.checkpoint.integrity.BLOCK_BYTES", 16)
    store.save(20, tensors(20), {}, None)
    path = store.path(20) / "state" / "__0_0.distcp"
    flip(path, 0)
    with pytest.raises(UserError, match=r"__0_0\.distcp \(written by rank 0\) block 0"):
        store.verify(20, "sampled")
    flip(path, 0)
    missed = 0
    for place in range(16, path.stat().st_size - 16, 16):
        flip(path, place)
        missed += not store.problems(20, "sampled")
        assert store.problems(20, "whole")
        flip(path, place)
    num_blocks = path.stat().st_size // 16
    assert 0.9 * num_blocks < missed * 16 / 15 < 1.1 * num_blocks


def test_many_ranks_share_the_blocks_of_one_large_file(store, monkeypatch):
    monkeypatch.setattr("cpt_dist.checkpoint.integrity.BLOCK_BYTES", 16)
    store.save(20, tensors(20), {}, None)
    path = store.path(20) / "state" / "__0_0.distcp"
    finders = []
    for place in range(0, path.stat().st_size, 16):
        flip(path, place)
        finders.append([part for part in range(5) if store.problems(20, "whole", Share(part, 5))])
        flip(path, place)
    assert {len(found) for found in finders} == {1}
    counts = [finders.count([part]) for part in range(5)]
    assert max(counts) - min(counts) <= 1


def test_what_a_killed_writer_left_is_cleared_and_a_checkpoint_about_to_be_replaced_comes_back(store):
    os.rename(store.path(12), store.folder / ".step-00000012.replaced")
    for name in (".step-00000003.pruned", ".step-00000012.tmp", ".step-00000003.replaced"):
        (store.folder / name).mkdir()
    store.tidy()
    assert sorted(path.name for path in store.folder.iterdir()) == ["step-00000003", "step-00000012"]
    store.verify(12)


def test_a_named_checkpoint_stays_until_its_name_goes(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=1)
    store.save(1, tensors(1), {}, None)
    store.set_name("before the decay", 1)
    store.save(2, tensors(2), {}, None)
    store.save(3, tensors(3), {}, None)
    assert store.steps() == [1, 3]
    assert store.step_of("before the decay") == 1
    store.set_name("before the decay", None)
    assert store.prune() == ([1], [3])
    with pytest.raises(UserError, match=r"no checkpoint of step 1 .* there are: \[3\]"):
        store.set_name("again", 1)


def test_the_best_by_held_out_text_stay(tmp_path):
    store = CheckpointStore(tmp_path, retention=Retention(keep_last=1, keep_best=1, best_of="law"))
    for step, value in ((1, 0.9), (2, 0.7), (3, 0.8), (4, None)):
        store.save(step, tensors(step), {}, None, {"law": value} if value else None)
    assert store.steps() == [2, 4]
    assert store.reasons() == {2: ["best 1 of law (0.7000)"], 4: ["newest"]}


def test_pruning_never_takes_the_only_whole_one(store):
    store.retention = Retention(keep_last=1)
    store.save(14, tensors(14), {}, None)  # takes 3 and 12
    store.retention = Retention(keep_last=0)
    store.save(15, tensors(15), {}, None)
    flip(store.path(15) / "state" / "__0_0.distcp")
    store.retention = Retention(keep_last=1)
    assert store.prune() == ([], [14, 15])
    assert store.newest_whole("previous") == 14


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 200 kB; needs the right to mount one."""
    (tmp_path / "disk").mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(tmp_path / "disk")]
    if subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("this user can't mount a small file system")
    yield tmp_path / "disk"
    subprocess.run(["umount", str(tmp_path / "disk")], check=True)


def test_a_full_disk_is_one_line_and_older_checkpoints_stay(small_disk):
    store = CheckpointStore(small_disk / "checkpoints")
    store.save(1, tensors(1), {}, None)
    with pytest.raises(UserError, match=r"No space left on device.*older ones are whole") as caught:
        store.save(2, {"model.big": torch.zeros(100_000)}, {}, None)
    assert len(caught.value.problems) == 1
    assert store.newest_whole("refuse") == 1
    store.save(3, tensors(3), {}, None)  # what the failed one left has been cleared away
    assert store.newest_whole("refuse") == 3


def test_a_read_only_disk_is_one_line(small_disk):
    store = CheckpointStore(small_disk / "checkpoints")
    store.save(1, tensors(1), {}, None)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(UserError, match="Read-only file system") as caught:
        store.save(2, tensors(2), {}, None)
    assert len(caught.value.problems) == 1
    assert store.newest_whole("refuse") == 1


@pytest.mark.parametrize("moment", ["file_entry", "write_json", "_sync_file"])
def test_a_folder_deleted_under_the_writer_is_one_line_and_the_next_save_works(tmp_path, monkeypatch, moment):
    store = CheckpointStore(tmp_path / "checkpoints")
    real = getattr(commit, moment)

    def deleting(*arguments):
        shutil.rmtree(tmp_path / "checkpoints")
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(commit, moment, deleting)
        with pytest.raises(UserError, match=r"checkpoint of step 1 was not written.*No such file") as caught:
            store.save(1, tensors(1), {}, None)
    assert len(caught.value.problems) == 1
    store.save(2, tensors(2), {}, None)
    assert store.newest_whole("refuse") == 2
