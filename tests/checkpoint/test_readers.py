"""The readers that do without torch see in torch's files what torch sees, and refuse what is no such file."""

import io
import os
import pickle
import resource
import subprocess
import sys
import zipfile
from pathlib import Path
from unittest.mock import patch

import numpy as np
import psutil
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)

from cpt_dist.checkpoint.dcp import SafeReader
from cpt_dist.checkpoint.dcp_index import dcp_sources
from cpt_dist.checkpoint.element_types import BY_NAME, WRITTEN, converted
from cpt_dist.checkpoint.export_weights import DtypePolicy, export_weights
from cpt_dist.checkpoint.tensor_source import Files, TensorSource
from cpt_dist.checkpoint.torch_file import StoredTensor, read_torch_file
from cpt_dist.errors import UserError

TYPES = {name: getattr(torch, name) for name in BY_NAME}


def raw(tensor):
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def tensors():
    values = torch.arange(60).view(5, 12) - 30
    return {name: values.to(kind) for name, kind in TYPES.items()} | {"empty": torch.empty(0, 3)}


def test_every_type_in_a_file_of_torch_save_is_read_as_torch_reads_it(tmp_path):
    path = tmp_path / "file.pt"
    torch.save(tensors() | {"view": torch.arange(100.0)[10:22].view(3, 4)}, path)
    stored, theirs = read_torch_file(path), torch.load(path, weights_only=True)
    content = path.read_bytes()
    for name, tensor in theirs.items():
        one = stored[name]
        assert (one.shape, one.dtype.name) == (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        assert content[one.offset : one.offset + one.numel * one.dtype.itemsize] == raw(tensor)


def test_every_type_in_a_distributed_checkpoint_is_read_as_torch_reads_it(tmp_path):
    dcp.save(tensors(), checkpoint_id=tmp_path, no_dist=True)
    theirs = {name: torch.zeros_like(tensor) for name, tensor in tensors().items()}
    dcp.load(theirs, checkpoint_id=tmp_path, no_dist=True)
    sources = dcp_sources(tmp_path)
    assert sources.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert (sources[name].shape, sources[name].dtype.name) == (
            tuple(tensor.shape),
            str(tensor.dtype).removeprefix("torch."),
        )
        assert b"".join(block.tobytes() for block in sources[name].blocks(Files(), 16)) == raw(tensor)


@pytest.mark.parametrize("target", WRITTEN)
@pytest.mark.parametrize("source", ["float32", "bfloat16", "float16", "float64"])
def test_conversions_round_as_torch_does(source, target):
    generator = np.random.default_rng(0)
    kind, width = TYPES[source], BY_NAME[source].itemsize
    bits = generator.integers(0, 1 << 16, 400_000 * width // 2, dtype=np.uint16).tobytes()
    special = torch.tensor(
        [0.0, -0.0, float("inf"), -float("inf"), float("nan"), 3.3e38, 1.0, 1 + 2**-8, 1 + 3 * 2**-8]
    )
    values = torch.cat([torch.frombuffer(bytearray(bits), dtype=kind), special.to(kind)])
    ours = converted(np.frombuffer(raw(values), BY_NAME[source].raw), BY_NAME[source], WRITTEN[target])
    theirs = values.to(TYPES[WRITTEN[target].name])
    found = torch.from_numpy(ours.view(f"i{WRITTEN[target].itemsize}").copy()).view(theirs.dtype)
    assert found.isnan().equal(theirs.isnan())
    number = ~theirs.isnan()
    integer = torch.int16 if target == "bf16" else torch.int32
    assert found.view(integer)[number].equal(theirs.view(integer)[number])


class Harm:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_an_index_that_names_another_class_is_refused_and_not_run(tmp_path):
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Harm(tmp_path / "harm")))
    with pytest.raises(UserError, match=r"mkdir has no place in a checkpoint's index"):
        dcp_sources(tmp_path)
    assert not (tmp_path / "harm").exists()


class Got:
    """Pickled as `getattr(kind, name)`, which is how Python 3.11.2 writes the member of an enumeration."""

    def __init__(self, kind, name):
        self.how = getattr, (kind, name)

    def __reduce__(self):
        return self.how


def test_an_index_may_get_members_of_enumerations_and_nothing_else(tmp_path):
    properties = TensorProperties(dtype=torch.float32)
    metadata = Metadata({"a": TensorStorageMetadata(properties, torch.Size([0]), [])}, storage_data={})
    with patch.object(_MEM_FORMAT_ENCODING, "__reduce_ex__", lambda self, _: (getattr, (type(self), self.name))):
        (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata))
    assert b"getattr" in (tmp_path / ".metadata").read_bytes()
    assert SafeReader(tmp_path).read_metadata().state_dict_metadata["a"].properties == properties
    for kind, name in ((Metadata, "__init__"), (_MEM_FORMAT_ENCODING, "mro"), ({}, "clear")):
        (tmp_path / ".metadata").write_bytes(pickle.dumps(Got(kind, name)))
        with pytest.raises(UserError, match=r"getattr of something else|not the index"):
            SafeReader(tmp_path).read_metadata()


def test_a_zero_stage_that_python_3_11_2_wrote_is_read(tmp_path):
    from deepspeed.runtime.zero.config import ZeroStageEnum

    with patch.object(ZeroStageEnum, "__reduce_ex__", lambda self, _: (getattr, (type(self), self.name))):
        torch.save({"zero_stage": ZeroStageEnum.weights}, tmp_path / "a.pt")
    assert read_torch_file(tmp_path / "a.pt") == {"zero_stage": 3}


def rewritten(path, change):
    """The same archive with its pickle, or all of its members, changed by `change(name, content)`."""
    with zipfile.ZipFile(path) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members:
            archive.writestr(name, change(name, content))


def one_line(error):
    return len(error.value.problems) == 1 and "\n" not in error.value.problems[0]


def test_a_storage_shorter_than_its_tensor_is_refused(tmp_path):
    path = tmp_path / "file.pt"
    torch.save({"first": torch.ones(64), "second": torch.ones(64)}, path)
    rewritten(path, lambda name, content: content[:-4] if name.endswith("data/0") else content)
    with pytest.raises(UserError, match=r"shape \[64\] has only 252 bytes") as error:
        read_torch_file(path)
    assert one_line(error)


@pytest.mark.parametrize("size", [-1, 1 << 40])
def test_a_tensor_of_an_impossible_size_is_refused(tmp_path, size):
    path, storage = tmp_path / "file.pt", object()
    torch.save(torch.ones(7), path)

    class Sized(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", torch.FloatStorage, "0", "cpu", 7) if value is storage else None

    class Tensor:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (storage, 0, (size,), (1,), False, {})

    out = io.BytesIO()
    Sized(out, 2).dump(Tensor())
    rewritten(path, lambda name, content: out.getvalue() if name.endswith("data.pkl") else content)
    with pytest.raises(UserError, match="a tensor of shape") as error:
        read_torch_file(path)
    assert one_line(error)


@pytest.fixture
def little_memory():
    """At most 2 GB more than now, since a changed byte of a pickle can ask for any amount."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def damaged(content, num_changed, every):
    """Cuts of `content`, one every so many bytes, and copies with a flipped bit."""
    yield from (content[:length] for length in range(0, len(content), every))
    generator = np.random.default_rng(0)
    for _ in range(num_changed):
        copy = bytearray(content)
        copy[generator.integers(len(content))] ^= 1 << generator.integers(8)
        yield bytes(copy)


def problem_of(read):
    """The line of a refusal; None where something was read."""
    try:
        read()
    except UserError as error:
        [line] = error.problems
        return line
    return None


def test_a_damaged_file_of_torch_save_is_refused_on_one_line_and_never_read_where_it_is_cut(tmp_path, little_memory):
    path = tmp_path / "file.pt"
    torch.save({"a": torch.arange(8.0), "b": {"c": torch.ones(2, 3, dtype=torch.bfloat16)}, "d": 3}, path)
    content = path.read_bytes()
    for one in damaged(content, num_changed=150, every=29):
        path.write_bytes(one)
        line = problem_of(lambda: read_torch_file(path))
        assert "\n" not in (line or "")
        assert line or len(one) == len(content), "a truncated archive was read"


def test_a_damaged_index_is_refused_on_one_line(tmp_path, little_memory):
    dcp.save({"a": torch.arange(8.0), "b": torch.ones(2, 3)}, checkpoint_id=tmp_path, no_dist=True)
    path = tmp_path / ".metadata"
    for one in damaged(path.read_bytes(), num_changed=150, every=29):
        path.write_bytes(one)
        line = problem_of(lambda: [list(source.blocks(Files())) for source in dcp_sources(tmp_path).values()])
        assert "\n" not in (line or "")


def copies(module, name, num_elements, num_copies):
    """A pickle of some hundred kB that asks for `num_copies` containers of `num_elements`."""
    long = b"(" + b"N" * num_elements + b"t\x94"
    return b"\x80\x04" + long + b"(" + num_copies * (f"c{module}\n{name}\n".encode() + b"h\x00\x85R") + b"t."


def one_record(fields):
    items = b"".join(b"K" + bytes([i]) + b"N" for i in range(fields))
    return b"\x80\x02ctorch.distributed.checkpoint.metadata\nMetadata\n)\x81}(" + items + b"ub."


BOMBS = {
    "memo": (b"\x80\x02Nr\xff\xff\xff\x7f.", "asks for a table of 2,147,483,647 objects"),
    "memo as text": (b"Np2147483647\n.", "asks for a table of 2,147,483,647 objects"),
    "bytearray": (b"\x80\x05\x96" + (1 << 35).to_bytes(8, "little") + b".", "34,359,738,368 bytes follow"),
    "copies": (copies("torch", "Size", 100_000, 10_000), "far more elements than it has bytes"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_pickle_that_asks_for_much_memory_is_refused(tmp_path, name, little_memory):
    content, line = BOMBS[name]
    (tmp_path / ".metadata").write_bytes(content)
    for read in (dcp_sources, lambda folder: SafeReader(folder).tensor_shapes()):
        with pytest.raises(UserError, match=line) as error:
            read(tmp_path)
        assert one_line(error)
    path = tmp_path / "file.pt"
    torch.save(torch.ones(7), path)
    rewritten(path, lambda name, old: content if name.endswith("data.pkl") else old)
    with pytest.raises(UserError, match=line) as error:
        read_torch_file(path)
    assert one_line(error)


def test_objects_with_absurdly_many_fields_or_classes_are_refused(tmp_path, monkeypatch):
    (tmp_path / ".metadata").write_bytes(one_record(65))
    with pytest.raises(UserError, match="65 fields, at most 64"):
        dcp_sources(tmp_path)
    path = tmp_path / "file.pt"
    monkeypatch.setattr("cpt_dist.checkpoint.torch_file.MOST_CLASSES", 2)
    torch.save(torch.ones(7), path)
    names = b"\x80\x02(ca\nb\nca\nc\nca\nb\n%st."
    rewritten(path, lambda name, old: names % b"" if name.endswith("data.pkl") else old)
    assert len(read_torch_file(path)) == 3
    rewritten(path, lambda name, old: names % b"ca\nd\n" if name.endswith("data.pkl") else old)
    with pytest.raises(UserError, match="more than 2 classes"):
        read_torch_file(path)


def test_pickles_of_absurd_length_and_compressed_ones_are_refused(tmp_path, monkeypatch):
    dcp.save({"a": torch.ones(2)}, checkpoint_id=tmp_path, no_dist=True)
    path = tmp_path / "file.pt"
    torch.save(torch.ones(7), path)
    with monkeypatch.context() as patched:
        patched.setattr("cpt_dist.checkpoint.pickle_limits.MOST_BYTES", 100)
        for read in (lambda: dcp_sources(tmp_path), lambda: read_torch_file(path)):
            with pytest.raises(UserError, match=r"it has [\d,]+ bytes, more than the 100 that are read"):
                read()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("file/data.pkl", b"0" * 10_000)
    with pytest.raises(UserError, match="it is compressed"):
        read_torch_file(path)


@pytest.mark.parametrize(
    ("sizes", "line"),
    [
        ((1 << 70,), "places or lengths"),
        ((1 << 40,), r"has [\d,]+ bytes, its index looks in bytes"),
        ((1,) * 65, "65 axes"),
    ],
)
def test_an_index_with_absurd_sizes_is_refused_by_name(tmp_path, sizes, line):
    dcp.save({"weight": torch.ones(7)}, checkpoint_id=tmp_path, no_dist=True)
    index = pickle.loads((tmp_path / ".metadata").read_bytes())
    entry = index.state_dict_metadata["weight"]
    entry.size = torch.Size(sizes)
    entry.chunks[0].sizes = entry.size
    (tmp_path / ".metadata").write_bytes(pickle.dumps(index))
    with pytest.raises(UserError, match=line) as error:
        dcp_sources(tmp_path)
    assert "'weight'" in str(error.value)
    assert one_line(error)


def test_a_tensor_of_absurd_size_whose_pieces_are_missing_makes_no_file(tmp_path):
    source = TensorSource("weight", (1 << 50,), BY_NAME["float32"], (), (1 << 50,))
    with pytest.raises(UserError, match=r"'weight' has 0 of"):
        export_weights({"weight": source}, tmp_path, DtypePolicy(BY_NAME["float32"]), 1 << 60, 1, "one")
    assert list(tmp_path.iterdir()) == []


def test_a_class_in_a_file_of_torch_save_becomes_an_inert_record(tmp_path):
    path = tmp_path / "file.pt"
    torch.save({"weights": torch.ones(2), "client": Harm(tmp_path / "harm")}, path)
    assert isinstance(read_torch_file(path)["weights"], StoredTensor)
    assert not (tmp_path / "harm").exists()


def test_moving_weights_imports_no_torch():
    modules = "consolidate, import_checkpoint, model_behind, read_check"
    code = f"import sys; from cpt_dist.checkpoint import {modules}; print('torch' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout == "False\n", done.stderr
