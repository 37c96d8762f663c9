"""A model folder keeps its small files byte for byte, and its config says the same to transformers 4 and 5."""

import json

import pytest
from transformers import AutoConfig, LlamaConfig

from cpt_dist.errors import UserError
from cpt_dist.model.model_files import copy_model_files, write_export_config

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
ROPES = {
    "default": {"rope_type": "default", "rope_theta": 1e6},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    "llama3": LLAMA3,
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 128,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
    },
}


def export(folder, config, dtype="bf16"):
    (folder / "config.json").write_text(json.dumps(config))
    write_export_config(folder, dtype)
    return json.loads((folder / "config.json").read_text())


def read_as_transformers_4(config):
    """RoPE as transformers 4 reads it: `rope_theta`, `rope_scaling`, nothing else; 10000 where there is no base."""
    return {
        "rope_type": "default",
        **(config.get("rope_scaling") or {}),
        "rope_theta": config.get("rope_theta", 10000.0),
    }


@pytest.mark.parametrize("kind", ROPES)
def test_rope_says_the_same_to_transformers_4_and_5(kind, tmp_path):
    rope = ROPES[kind]
    LlamaConfig(max_position_embeddings=512, rope_parameters=dict(rope)).save_pretrained(tmp_path)
    exported = export(tmp_path, json.loads((tmp_path / "config.json").read_text()))
    assert read_as_transformers_4(exported) == rope
    assert AutoConfig.from_pretrained(tmp_path).rope_parameters == rope
    assert (exported["rope_scaling"] is None) == (kind == "default")


@pytest.mark.parametrize("kind", ROPES)
def test_a_config_of_transformers_4_keeps_its_rope(kind, tmp_path):
    scaling = {key: value for key, value in ROPES[kind].items() if key != "rope_theta"}
    legacy = {
        "model_type": "llama",
        "max_position_embeddings": 512,
        "rope_theta": ROPES[kind]["rope_theta"],
        "rope_scaling": None if kind == "default" else scaling,
        "torch_dtype": "float16",
    }
    exported = export(tmp_path, legacy, "fp32")
    assert read_as_transformers_4(exported) == exported["rope_parameters"] == ROPES[kind]
    assert AutoConfig.from_pretrained(tmp_path).rope_parameters == ROPES[kind]
    assert exported["dtype"] == exported["torch_dtype"] == "float32"


def test_rope_scaling_wins_over_rope_parameters_as_in_transformers_5(tmp_path):
    config = {
        "model_type": "llama",
        "rope_theta": 1.0,
        "rope_parameters": {"rope_type": "linear", "factor": 16.0, "rope_theta": 2.0},
        "rope_scaling": {"type": "linear", "factor": 2.0, "rope_theta": 3.0},
    }
    exported = export(tmp_path, config)
    assert read_as_transformers_4(exported) == {"rope_type": "linear", "factor": 2.0, "rope_theta": 3.0}
    assert exported["rope_parameters"] == read_as_transformers_4(exported)


def test_a_partial_rotary_factor_is_where_both_look_for_it(tmp_path):
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    exported = export(tmp_path, {"model_type": "phi", "rope_parameters": rope})
    assert exported["partial_rotary_factor"] == 0.5
    assert exported["rope_scaling"] is None
    assert AutoConfig.from_pretrained(tmp_path).rope_parameters == rope


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "gpt2", "n_positions": 64},
        {
            "model_type": "gemma3_text",
            "rope_theta": 1e6,
            "rope_parameters": {"full_attention": {"rope_theta": 1e6, "rope_type": "default"}},
        },
    ],
    ids=["no rope", "a rope for each type of layer"],
)
def test_what_transformers_4_cannot_say_is_left_alone(config, tmp_path):
    assert export(tmp_path, config) == config | {"dtype": "bfloat16", "torch_dtype": "bfloat16"}


def test_an_unknown_dtype_is_refused(tmp_path):
    with pytest.raises(ValueError, match="fp16"):
        write_export_config(tmp_path, "fp16")


def test_small_files_are_copied_byte_for_byte_and_weights_are_not(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    small = [
        "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
        "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja",
        "additional_chat_templates/tool.jinja",
    ]  # fmt: skip
    for name in [*small, "model.safetensors", "pytorch_model.bin", "README.md"]:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(b'{ "name":  "' + name.encode() + b'" }\r\n')
    assert copy_model_files(source, target) == sorted(small)
    assert sorted(str(p.relative_to(target)) for p in target.rglob("*") if p.is_file()) == sorted(small)
    assert all((source / name).read_bytes() == (target / name).read_bytes() for name in small)


def test_the_tokenizer_may_come_from_another_folder(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "tokens").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "tokens" / "tokenizer.json").write_text("{}")
    copied = copy_model_files(tmp_path / "model", tmp_path / "out", tokenizer=tmp_path / "tokens")
    assert copied == ["config.json", "tokenizer.json"]
    with pytest.raises(UserError, match="has no tokenizer"):
        copy_model_files(tmp_path / "model", tmp_path / "out")
