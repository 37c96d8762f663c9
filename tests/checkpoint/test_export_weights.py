import itertools
import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from cpt_dist.checkpoint import export_weights as module
from cpt_dist.checkpoint.consolidate import model_sources
from cpt_dist.checkpoint.element_types import BFLOAT16, BY_NAME, FLOAT32
from cpt_dist.checkpoint.export_weights import DtypePolicy, export_weights
from cpt_dist.checkpoint.model_folder_writer import folder_in_the_making
from cpt_dist.checkpoint.read_check import ReadCheck
from cpt_dist.checkpoint.store import CheckpointStore
from cpt_dist.checkpoint.tensor_source import Files, Piece, TensorSource
from cpt_dist.errors import UserError

FP32 = DtypePolicy(FLOAT32)


@pytest.fixture(scope="module", autouse=True)
def process_group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def cut_at(draw, length):
    borders = sorted({0, length, *draw(st.lists(st.integers(0, length), max_size=3))})
    return list(itertools.pairwise(borders))


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_tensor_cut_into_any_boxes_is_read_as_it_was(tmp_path_factory, data):
    shape = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple))
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.int64]))
    whole = torch.arange(int(np.prod(shape))).view(shape).to(dtype)
    path, pieces, content = tmp_path_factory.mktemp("boxes") / "data", [], b""
    for rows in cut_at(data.draw, shape[0]):
        for columns in cut_at(data.draw, shape[1]) if len(shape) > 1 else [None]:
            box = [rows, *([columns] if columns else []), *((0, length) for length in shape[2:])]
            offsets, sizes = tuple(a for a, _ in box), tuple(b - a for a, b in box)
            pieces.append(Piece(path, len(content), offsets, sizes))
            values = whole[tuple(slice(a, b) for a, b in box)].contiguous()
            content += values.view(-1).view(torch.uint8).numpy().tobytes()
    path.write_bytes(content)
    order = data.draw(st.permutations(pieces))
    element_type = BY_NAME[str(dtype).removeprefix("torch.")]
    source = TensorSource("x", shape, element_type, tuple(order), shape)
    blocks = [block.tobytes() for block in source.blocks(Files(), data.draw(st.integers(1, 40)))]
    assert b"".join(blocks) == whole.view(-1).view(torch.uint8).numpy().tobytes()
    with pytest.raises(UserError, match="elements in the checkpoint"):
        list(TensorSource("x", shape, element_type, tuple(order[1:]), shape).blocks(Files()))


@pytest.fixture
def saved(tmp_path):
    """A store with the tensors a to f of some kB each, and these."""
    tensors = {name: torch.randn(100, 30, generator=torch.Generator().manual_seed(ord(name))) for name in "abcdef"}
    state = {f"model.{name}": value for name, value in tensors.items()}
    moments = {f"optimizer.exp_avg.{name}": value + 1 for name, value in tensors.items()}
    CheckpointStore(tmp_path / "store").save(1, state | moments, {}, None)
    return CheckpointStore(tmp_path / "store"), tensors


def export(store, out, policy=FP32, workers=2, identity="one"):
    with folder_in_the_making(out, "out") as part:
        sources = model_sources(store.path(1))
        check = ReadCheck(store.path(1), store.manifest(1))
        check.files()
        written = export_weights(sources, part, policy, 25_000, workers, identity, check.reading)
        (part / "config.json").write_text("{}")
    return written


def values(folder):
    return {name: value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}


@pytest.mark.parametrize("workers", [1, 3])
def test_written_tensors_are_those_of_the_store(saved, tmp_path, workers):
    store, tensors = saved
    written = export(store, tmp_path / "out", workers=workers)
    assert len(written.files) == 3
    assert written.kept_files == []
    assert written.checksums.keys() == tensors.keys()
    found = values(tmp_path / "out")
    assert all(found[name].equal(value) for name, value in tensors.items())
    assert sorted(path.suffix for path in (tmp_path / "out").iterdir()) == [".json"] * 2 + [".safetensors"] * 3


def test_named_tensors_stay_in_fp32(saved, tmp_path):
    store, tensors = saved
    export(store, tmp_path / "out", DtypePolicy(BFLOAT16, ("[ab]", "f*")))
    found = values(tmp_path / "out")
    assert {name for name, value in found.items() if value.dtype == torch.float32} == {"a", "b", "f"}
    assert all(found[name].equal(value.to(found[name].dtype)) for name, value in tensors.items())


def killed_export(store, out, after_files):
    """An export in a process of its own that is killed when it has noted so many files."""

    def work():
        add, noted = module._Journal.add, []

        def add_and_die(journal, file, tensors):
            add(journal, file, tensors)
            noted.append(file)
            if len(noted) == after_files:
                os.kill(os.getpid(), signal.SIGKILL)

        module._Journal.add = add_and_die
        export(store, out, workers=1)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("after_files", [1, 3])
def test_a_killed_export_goes_on_with_what_it_had_finished(saved, tmp_path, after_files):
    store, tensors = saved
    killed_export(store, tmp_path / "out", after_files)
    assert not (tmp_path / "out").exists()
    written = export(store, tmp_path / "out")
    assert len(written.kept_files) == after_files
    assert written.checksums.keys() == tensors.keys()
    assert all(values(tmp_path / "out")[name].equal(value) for name, value in tensors.items())


def test_a_kept_file_that_was_damaged_is_made_again(saved, tmp_path):
    store, tensors = saved
    killed_export(store, tmp_path / "out", 2)
    [damaged, _] = sorted((tmp_path / ".out.part").glob("model*.safetensors"))
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    written = export(store, tmp_path / "out")
    assert len(written.kept_files) == 1
    assert all(values(tmp_path / "out")[name].equal(value) for name, value in tensors.items())


def test_files_of_another_export_are_not_kept(saved, tmp_path):
    store, tensors = saved
    killed_export(store, tmp_path / "out", 2)
    assert export(store, tmp_path / "out", DtypePolicy(BFLOAT16)).kept_files == []
    assert all(values(tmp_path / "out")[n].equal(value.to(torch.bfloat16)) for n, value in tensors.items())


def test_files_of_another_checkpoint_of_the_same_shapes_are_not_kept(saved, tmp_path):
    store, _ = saved
    killed_export(store, tmp_path / "out", 2)
    assert export(store, tmp_path / "out", identity="two").kept_files == []


def test_a_tensor_that_reads_back_as_another_is_named(saved, tmp_path, monkeypatch):
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, at: pwrite(descriptor, bytes(len(data)), at))
    with pytest.raises(UserError, match=r"tensor '[a-f]' reads back with checksum"):
        export(saved[0], tmp_path / "out")
    assert list(tmp_path.glob("*out*")) == []


def test_a_flipped_byte_under_a_weight_is_named_and_nothing_is_written(saved, tmp_path):
    store, _ = saved
    [path] = (store.path(1) / "state").glob("*.distcp")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"checkpoint 1: .*distcp block 0 has checksum"):
        export(store, tmp_path / "out")
    assert list(tmp_path.glob("*out*")) == []


@pytest.mark.parametrize("order", [sorted, lambda names: sorted(names, reverse=True), lambda names: list("cafebd")])
def test_every_byte_under_what_is_read_is_compared_in_whatever_order_it_is_read(saved, monkeypatch, order):
    store, tensors = saved
    monkeypatch.setattr("cpt_dist.checkpoint.integrity.BLOCK_BYTES", 1000)
    store.save(2, {f"model.{name}": value for name, value in tensors.items()}, {}, None)
    sources = model_sources(store.path(2))
    check = ReadCheck(store.path(2), store.manifest(2))
    path = next(store.path(2).glob("state/*.distcp"))
    content = path.read_bytes()

    def read(names):
        with check.reading(piece for name in names for piece in sources[name].pieces) as files:
            try:
                return {name: b"".join(bytes(block) for block in sources[name].blocks(files)) for name in order(names)}
            finally:
                files.check()

    assert read(tensors) == {name: value.numpy().tobytes() for name, value in tensors.items()}
    [first] = sources["b"].pieces
    for at in range(first.offset, first.offset + first.item_bytes, 157):
        flipped = bytearray(content)
        flipped[at] ^= 1
        path.write_bytes(flipped)
        number = at // 1000
        with pytest.raises(UserError, match=rf"block {number} has checksum"):
            read("abc")
        with pytest.raises(UserError, match=rf"block {number} has checksum"), check.reading([first]) as files:
            files.check()
        with check.reading(sources["f"].pieces) as files:
            files.check()


def test_a_killed_worker_leaves_what_is_finished(saved, tmp_path, monkeypatch):
    store, tensors = saved
    write = module._write_tensor

    def dies(descriptor, offset, source, spec, files):
        if spec.name == "e":
            os.kill(os.getpid(), signal.SIGKILL)
        return write(descriptor, offset, source, spec, files)

    with monkeypatch.context() as patched:
        patched.setattr(module, "_write_tensor", dies)
        with pytest.raises(UserError, match=r"worker .* was killed"):
            export(store, tmp_path / "out", workers=1)
    written = export(store, tmp_path / "out")
    assert all(values(tmp_path / "out")[name].equal(value) for name, value in tensors.items())
    assert len(written.kept_files) <= 2


def test_a_second_writer_is_refused(saved, tmp_path, monkeypatch):
    monkeypatch.setattr("cpt_dist.checkpoint.model_folder_writer._LOCK_WAIT_SECONDS", 0.0)
    with (
        folder_in_the_making(tmp_path / "out", "out") as part,
        pytest.raises(UserError, match="another process is writing"),
        folder_in_the_making(tmp_path / "out", "out"),
    ):
        pass
    assert part.name == ".out.part"


def test_memory_does_not_grow_with_the_model(saved, tmp_path):
    small = export(saved[0], tmp_path / "small")
    store = CheckpointStore(tmp_path / "large")
    store.save(1, {"model.a": torch.zeros(40_000_000)}, {}, None)
    large = export(store, tmp_path / "out")
    assert large.peak_bytes < small.peak_bytes + 60_000_000, "160 MB passed through"
