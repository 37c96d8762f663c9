"""Checkpoints that other trainers have really written become Hugging Face models with their weights, bit by bit."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from cpt_dist.checkpoint.expected_weights import expected_by_files, expected_by_model
from cpt_dist.checkpoint.export_weights import WorkerKilledError
from cpt_dist.checkpoint.import_checkpoint import OtherModelError, find_checkpoint, import_checkpoint
from cpt_dist.checkpoint.model_behind import ModelBehind
from cpt_dist.errors import UserError
from tests.helpers.models import tiny_qwen2
from tests.helpers.tiny_run import write_tokenizer

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """A folder with `base` and a checkpoint of each other trainer."""
    folder = tmp_path_factory.mktemp("others")
    tiny_qwen2(folder / "base")
    write_tokenizer(folder / "base")
    environment = os.environ | {
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    script = ROOT / "tests" / "helpers" / "other_trainers.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    done = subprocess.run([*command, script, folder], env=environment, capture_output=True, text=True, timeout=480)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def imported(source, base, out, **options):
    settings = {"dtype_name": "fp32", "max_shard_bytes": 10**9} | options
    return import_checkpoint(source, base, out, **settings)


def weights(folder):
    return {name: value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}


PLACES = {
    "zero3": "zero3",
    "zero2": "zero2/global_step2",
    "trainer": "trainer/checkpoint-2",
    "accelerate": "accelerate",
}


@pytest.mark.parametrize("trainer", PLACES)
def test_imported_weights_are_those_of_the_live_model(others, tmp_path, trainer):
    done = imported(others / PLACES[trainer], others / "base", tmp_path / "model", max_shard_bytes=200_000, workers=2)
    live, written = load_file(others / trainer / "live.safetensors"), weights(tmp_path / "model")
    assert written.keys() == live.keys()
    assert all(written[name].dtype == value.dtype and written[name].equal(value) for name, value in live.items())
    assert done.found.num_steps == (None if trainer == "accelerate" else 2)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert all(value.equal(live[name]) for name, value in plain.named_parameters())


@pytest.mark.parametrize("trainer", ["zero3", "zero2", "trainer"])
def test_names_from_the_headers_of_the_base_find_what_the_architecture_finds(others, trainer):
    by_files, by_model = expected_by_files(others / "base"), expected_by_model(others / "base")
    place = others / PLACES[trainer]
    assert find_checkpoint(place, by_files).sources == find_checkpoint(place, by_model).sources


def test_two_copies_of_a_tied_weight_are_left_to_the_architecture(others):
    with pytest.raises(OtherModelError, match=r"lm_head.weight', which the config doesn't"):
        find_checkpoint(others / "accelerate", expected_by_files(others / "base"))


def test_a_base_without_weights_gives_the_same_import(others, tmp_path):
    shutil.copytree(others / "base", tmp_path / "base", ignore=shutil.ignore_patterns("*.safetensors"))
    assert expected_by_files(tmp_path / "base") is None
    imported(others / "zero3", tmp_path / "base", tmp_path / "model", check_logits=False)
    live = load_file(others / "zero3" / "live.safetensors")
    assert all(value.equal(live[name]) for name, value in weights(tmp_path / "model").items())


def test_a_checkpoint_that_was_written_anew_is_not_taken_for_the_interrupted_one(others, tmp_path, monkeypatch):
    state = load_file(others / "accelerate" / "live.safetensors")
    dcp.save(state, checkpoint_id=tmp_path / "saved", no_dist=True)

    def killed(*_):
        raise WorkerKilledError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(ModelBehind, "has_finite_logits", killed)
        with pytest.raises(WorkerKilledError):
            imported(tmp_path / "saved", others / "base", tmp_path / "model")
    again = {name: value + 1 for name, value in state.items()}
    dcp.save(again, checkpoint_id=tmp_path / "saved", no_dist=True)
    assert imported(tmp_path / "saved", others / "base", tmp_path / "model").kept_files == []
    assert all(value.equal(again[name]) for name, value in weights(tmp_path / "model").items())


def test_files_that_are_not_laid_out_as_zero_are_refused_on_one_line(others, tmp_path):
    shutil.copytree(others / "zero3" / "global_step2", tmp_path / "copy")
    torch.save({"optimizer_state_dict": {}}, tmp_path / "copy" / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    with pytest.raises(UserError, match=r"not laid out as ZeRO's \(KeyError 'zero_stage'\)"):
        imported(tmp_path / "copy", others / "base", tmp_path / "model")


def test_the_command_says_what_is_not_taken_over(others, tmp_path):
    script = ROOT / "launch" / "import_checkpoint.py"
    words = [f"from={others / 'zero3'}", f"model={others / 'base'}", f"out={tmp_path / 'model'}", "dtype=bf16"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, script, *words], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "DeepSpeed, step 2" in done.stdout
    assert "Not taken over: Adam's moments" in done.stdout
    assert {value.dtype for value in weights(tmp_path / "model").values()} == {torch.bfloat16}


def test_missing_words_are_named_all_at_once():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, ROOT / "launch" / "import_checkpoint.py", "out=somewhere"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "error: from is missing; give it: from=FOLDER\nerror: model is missing; give it: model=FOLDER" in done.stderr


def test_a_checkpoint_of_another_model_is_refused_by_name(others, tmp_path):
    tiny_qwen2(tmp_path / "other", hidden_size=32)
    write_tokenizer(tmp_path / "other")
    with pytest.raises(UserError, match=r"has shape \[1001, 64\], the config wants \[1001, 32\]"):
        imported(others / "zero3", tmp_path / "other", tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("name", ["optim_states", "model_states"])
def test_a_missing_rank_is_named(others, tmp_path, name):
    shutil.copytree(others / "zero3" / "global_step2", tmp_path / "copy")
    (tmp_path / "copy" / f"zero_pp_rank_1_mp_rank_00_{name}.pt").unlink()
    with pytest.raises(UserError, match=r"1 files of the (optimizer|model), of 2 ranks"):
        imported(tmp_path / "copy", others / "base", tmp_path / "model")


def test_a_truncated_file_is_named(others, tmp_path):
    shutil.copytree(others / "accelerate", tmp_path / "copy")
    path = tmp_path / "copy" / "pytorch_model_fsdp_0" / "__1_0.distcp"
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(UserError, match=r"__1_0\.distcp"):
        imported(tmp_path / "copy", others / "base", tmp_path / "model")
    assert not (tmp_path / "model").exists()


class Harm:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_nothing_in_a_file_is_executed(others, tmp_path):
    shutil.copytree(others / "zero2" / "global_step2", tmp_path / "copy")
    path = tmp_path / "copy" / "mp_rank_00_model_states.pt"
    state = torch.load(path, weights_only=False) | {"client": Harm(tmp_path / "harm")}
    torch.save(state, path)
    imported(tmp_path / "copy", others / "base", tmp_path / "model")
    assert not (tmp_path / "harm").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "harm").exists(), "the file was harmless, so the test showed nothing"


def test_an_index_that_leads_out_of_its_folder_is_refused(others, tmp_path):
    shutil.copytree(others / "accelerate" / "pytorch_model_fsdp_0", tmp_path / "copy")
    index = tmp_path / "copy" / ".metadata"
    content = pickle.loads(index.read_bytes())
    for where in content.storage_data.values():
        where.relative_path = "../secret"
    index.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=r"leads to '\.\./secret', out of the checkpoint"):
        imported(tmp_path / "copy", others / "base", tmp_path / "model")


def test_tied_weights_that_differ_are_refused(others, tmp_path):
    state = load_file(others / "accelerate" / "live.safetensors")
    head = state["model.embed_tokens.weight"] + 1
    dcp.save({"model": state | {"lm_head.weight": head}}, checkpoint_id=tmp_path / "saved", no_dist=True)
    with pytest.raises(UserError, match="differ, but the config ties them"):
        imported(tmp_path / "saved", others / "base", tmp_path / "model")


def test_a_checkpoint_without_the_untied_head_is_refused(others, tmp_path):
    shutil.copytree(others / "base", tmp_path / "untied")
    config = tmp_path / "untied" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tie_word_embeddings": False}))
    dcp.save(load_file(others / "accelerate" / "live.safetensors"), checkpoint_id=tmp_path / "saved", no_dist=True)
    with pytest.raises(UserError, match=r"lacks 'lm_head.weight'"):
        imported(tmp_path / "saved", tmp_path / "untied", tmp_path / "model")
