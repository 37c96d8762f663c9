import itertools
import json

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from cpt_dist.checkpoint.consolidate import consolidate
from cpt_dist.checkpoint.element_types import FLOAT32
from cpt_dist.checkpoint.export_weights import WorkerKilledError
from cpt_dist.checkpoint.model_behind import ModelBehind
from cpt_dist.checkpoint.safetensors_stream import TensorSpec, lay_out
from cpt_dist.checkpoint.store import CheckpointStore, Probe
from cpt_dist.config import ModelConfig
from cpt_dist.errors import UserError
from cpt_dist.model.load import load_model
from tests.helpers.models import FAMILIES
from tests.helpers.tiny_run import write_tokenizer


@pytest.fixture(scope="module", autouse=True)
def process_group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def saved(folder, builder):
    """A checkpoint of an untrained model, as the trainer would save it: (store, model folder, model)."""
    builder(folder / "base")
    write_tokenizer(folder / "base")
    model = load_model(ModelConfig(path=str(folder / "base"))).eval()
    ids = torch.randint(0, 1000, (32,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model.logits(ids, torch.arange(32), torch.tensor([0, 32], dtype=torch.int32))
    tensors = {f"model.{model.hf_name(name)}": parameter.detach() for name, parameter in model.named_parameters()}
    store = CheckpointStore(folder / "checkpoints")
    store.save(1, tensors, {}, Probe(ids, logits))
    return store, folder / "base", model


@pytest.mark.parametrize("family", FAMILIES)
def test_a_consolidated_model_loads_with_plain_transformers_and_has_equal_logits(tmp_path, family):
    store, base, model = saved(tmp_path, FAMILIES[family])
    done = consolidate(store, 1, base, tmp_path / "model", "fp32", 10**9)
    assert done.logit_difference <= 1e-5
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    theirs = dict(plain.named_parameters())
    assert all(theirs[model.hf_name(name)].equal(ours) for name, ours in model.named_parameters())
    tied = plain.get_input_embeddings().weight is plain.get_output_embeddings().weight
    assert tied == bool(model.tied_names())


def test_many_files_have_an_index_and_load_whole(tmp_path):
    store, base, _ = saved(tmp_path, next(iter(FAMILIES.values())))
    consolidate(store, 1, base, tmp_path / "model", "fp32", 100_000)
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())
    files = set(index["weight_map"].values())
    assert len(files) > 2
    assert files == {path.name for path in (tmp_path / "model").glob("*.safetensors")}


def test_bf16_weights_are_the_rounded_ones(tmp_path):
    store, base, model = saved(tmp_path, next(iter(FAMILIES.values())))
    consolidate(store, 1, base, tmp_path / "model", "bf16", 10**9)
    written = load_file(tmp_path / "model" / "model.safetensors")
    ours = {model.hf_name(name): parameter for name, parameter in model.named_parameters()}
    assert all(tensor.equal(ours[name].to(torch.bfloat16)) for name, tensor in written.items())


def test_logits_that_differ_leave_no_model(tmp_path):
    store, base, model = saved(tmp_path, next(iter(FAMILIES.values())))
    tensors = {f"model.{model.hf_name(name)}": p.detach() * 1.001 for name, p in model.named_parameters()}
    store.save(2, tensors, {}, store.probe(1))
    with pytest.raises(UserError, match="logits differ"):
        consolidate(store, 2, base, tmp_path / "model", "fp32", 10**9)
    assert not (tmp_path / "model").exists()
    assert not list(tmp_path.glob(".model*"))


def test_without_the_check_of_logits_the_weights_are_written_all_the_same(tmp_path):
    store, base, model = saved(tmp_path, next(iter(FAMILIES.values())))
    assert consolidate(store, 1, base, tmp_path / "model", "fp32", 10**9, check_logits=False).logit_difference is None
    written = load_file(tmp_path / "model" / "model.safetensors")
    assert all(written[model.hf_name(name)].equal(value) for name, value in model.named_parameters())


def test_a_checkpoint_that_was_written_anew_is_not_taken_for_the_interrupted_one(tmp_path, monkeypatch):
    store, base, model = saved(tmp_path, next(iter(FAMILIES.values())))

    def killed(*_):
        raise WorkerKilledError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(ModelBehind, "difference_from_probe", killed)
        with pytest.raises(WorkerKilledError):
            consolidate(store, 1, base, tmp_path / "model", "fp32", 10**9)
    again = {f"model.{model.hf_name(name)}": value.detach() + 1 for name, value in model.named_parameters()}
    store.save(1, again, {}, None)
    assert consolidate(store, 1, base, tmp_path / "model", "fp32", 10**9).kept_files == []
    written = load_file(tmp_path / "model" / "model.safetensors")
    assert all(value.equal(again[f"model.{name}"]) for name, value in written.items())


def test_a_folder_that_is_no_model_is_not_overwritten(tmp_path):
    store, base, _ = saved(tmp_path, next(iter(FAMILIES.values())))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "thesis.txt").write_text("ten years of work")
    with pytest.raises(UserError, match="holds something that is no model"):
        consolidate(store, 1, base, tmp_path / "model", "fp32", 10**9)
    assert (tmp_path / "model" / "thesis.txt").exists()


@given(st.lists(st.integers(1, 50), min_size=1, max_size=20), st.integers(1, 100))
def test_files_hold_every_tensor_once_and_no_more_than_allowed(sizes, limit):
    specs = [TensorSpec(str(i), (size,), FLOAT32) for i, size in enumerate(sizes)]
    files = lay_out(specs, 4 * limit)
    assert list(itertools.chain(*(layout.specs for layout in files))) == specs
    assert all(len(f.specs) == 1 or sum(spec.num_bytes for spec in f.specs) <= 4 * limit for f in files)
