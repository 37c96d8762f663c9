import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from cpt_dist.config import ModelConfig, RopeConfig, StageConfig
from cpt_dist.errors import UserError
from cpt_dist.model.folder import read_model_config
from cpt_dist.model.load import load_model
from cpt_dist.model.model_files import write_export_config
from cpt_dist.model.rope import dimension_ranges, inverse_frequencies, ntk_theta, stage_ropes
from cpt_dist.model.rope_switch import rope_of, set_rope
from cpt_dist.rope_config import ROPE_TYPES, rope_problems
from tests.helpers.models import tiny_gpt2, tiny_llama, tiny_qwen3

BASE = {
    "model_type": "llama",
    "hidden_size": 512,
    "num_attention_heads": 8,
    "max_position_embeddings": 2048,
    "rope_theta": 10000.0,
}


def stages(*ropes, seq_len=8192):
    return [StageConfig(name=f"s{i}", seq_len=seq_len, rope=rope) for i, rope in enumerate(ropes)]


def only(rope, config=BASE, seq_len=8192):
    (found,) = stage_ropes(config, stages(rope, seq_len=seq_len))
    return found


@pytest.mark.parametrize(("scale", "theta"), [(2, 20452), (4, 41829), (8, 85550), (32, 357852)])
def test_the_ntk_aware_base_has_the_published_values(scale, theta):
    assert round(ntk_theta(1e4, scale, 64)) == theta


@pytest.mark.parametrize("kind", [kind for kind in ROPE_TYPES if kind != "none"])
@pytest.mark.parametrize("seq_len", [2048, 8192, 65536])
def test_frequencies_are_those_of_transformers(kind, seq_len):
    rope = only(RopeConfig(type=kind), seq_len=seq_len)
    changes = {"rope_parameters": dict(rope.parameters), "max_position_embeddings": rope.max_positions}
    embedding = LlamaRotaryEmbedding(LlamaConfig(hidden_size=512, num_attention_heads=8, **changes))
    ours = inverse_frequencies(rope.parameters, 64)
    np.testing.assert_allclose(embedding.inv_freq.double().numpy(), ours, rtol=1e-6, atol=1e-9)
    assert embedding.attention_scaling == pytest.approx(rope.parameters.get("attention_factor", 1.0))


def test_each_type_says_where_its_values_come_from():
    assert only(RopeConfig(type="abf", theta=1e6)).parameters == {"rope_type": "default", "rope_theta": 1e6}
    assert only(RopeConfig(type="abf")).parameters["rope_theta"] == round(2 * ntk_theta(1e4, 4, 64))
    assert only(RopeConfig(type="ntk")).parameters["rope_theta"] == ntk_theta(1e4, 4, 64)
    yarn = only(RopeConfig(type="yarn", factor=32, original=4096))
    assert (yarn.max_positions, yarn.parameters["original_max_position_embeddings"]) == (131072, 4096)
    assert yarn.parameters["attention_factor"] == pytest.approx(0.1 * np.log(32) + 1)


def test_a_stage_without_rope_keeps_that_of_the_stage_before():
    first, second, third = stage_ropes(
        BASE, stages(RopeConfig(type="abf", theta=5e5), None, RopeConfig(type="none"), seq_len=1024)
    )
    assert first == second
    assert third is None


@pytest.mark.parametrize("builder", [tiny_llama, tiny_qwen3])
@pytest.mark.parametrize("kind", [kind for kind in ROPE_TYPES if kind != "none"])
def test_a_switched_model_is_bit_for_bit_a_fresh_load(tmp_path, builder, kind):
    folder = builder(tmp_path / "model")
    model = load_model(ModelConfig(path=str(folder)))
    (rope,) = stage_ropes(read_model_config(folder), stages(RopeConfig(type=kind), seq_len=512))
    base = rope_of(model)
    ids, positions = torch.arange(1, 301) % 1000, torch.arange(300)
    borders = torch.tensor([0, 300], dtype=torch.int32)
    before = model.logits(ids, positions, borders)
    set_rope(model, rope.config_changes)
    write_export_config(folder, "fp32", rope_of(model))
    switched, fresh = (
        one.logits(ids, positions, borders) for one in (model, load_model(ModelConfig(path=str(folder))))
    )
    assert torch.equal(switched, fresh)
    assert not torch.allclose(switched, before)
    set_rope(model, base)
    assert torch.equal(model.logits(ids, positions, borders), before)


def test_a_low_precision_model_gets_frequencies_in_full_precision(tmp_path):
    model = load_model(ModelConfig(path=str(tiny_llama(tmp_path)))).bfloat16()
    set_rope(model, rope_of(model))
    assert {buffer.dtype for name, buffer in model.named_buffers() if "inv_freq" in name} == {torch.float32}


def test_the_export_of_a_switched_model_says_the_same_in_both_forms(tmp_path):
    folder = tiny_llama(tmp_path)
    rope = only(RopeConfig(type="yarn"), read_model_config(folder), seq_len=512)
    write_export_config(folder, "bf16", rope.config_changes)
    saved = json.loads((folder / "config.json").read_text())
    assert saved["rope_scaling"] | {"rope_theta": saved["rope_theta"]} == saved["rope_parameters"]
    assert saved["max_position_embeddings"] == 512
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    expected = inverse_frequencies(rope.parameters, 16)
    np.testing.assert_allclose(loaded.model.rotary_emb.inv_freq.double().numpy(), expected, rtol=1e-6)


@given(
    st.sampled_from([kind for kind in ROPE_TYPES if kind not in ("none", "abf")]),
    st.sampled_from([1.0, 2.0, 4.0, 16.0]),
    st.sampled_from([1e4, 5e5]),
)
def test_every_pair_of_dimensions_is_in_one_range(kind, factor, theta):
    rope = only(RopeConfig(type=kind, factor=factor), BASE | {"rope_theta": theta}, seq_len=2048)
    base, scaled = (
        inverse_frequencies(p, 64) for p in ({"rope_type": "default", "rope_theta": theta}, rope.parameters)
    )
    ranges = dimension_ranges(base, scaled, 2048, rope.max_positions)
    assert [pair for one in ranges for pair in range(one.first, one.last + 1)] == list(range(32))


def test_without_scaling_the_slow_dimensions_are_extrapolated_and_interpolation_has_none():
    plain = inverse_frequencies({"rope_type": "default", "rope_theta": 1e4}, 64)
    kinds = [one.kind for one in dimension_ranges(plain, plain, 2048, 8192)]
    assert kinds == ["seen", "extrapolated"]
    interpolated = dimension_ranges(plain, plain / 4, 2048, 8192)
    assert "extrapolated" not in [one.kind for one in interpolated]


@pytest.mark.parametrize(
    ("config", "rope", "message"),
    [
        (BASE, None, r"stages.0 \('s0'\).seq_len: 8192 is beyond the 2048 positions .* give the stage a rope, such as"),
        (BASE, RopeConfig(type="linear", factor=2.0), "8192 is beyond the 4096 positions .* raise rope.factor"),
        (BASE | {"rope_theta": None}, RopeConfig(), "states no single RoPE"),
        (BASE | {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, RopeConfig(), "'dynamic' follows"),
    ],
)
def test_a_rope_that_cannot_be_is_refused_by_stage(config, rope, message):
    with pytest.raises(UserError, match=message):
        stage_ropes(config, stages(rope))


def test_a_model_without_rope_is_asked_for_shorter_rows(tmp_path):
    config = read_model_config(tiny_gpt2(tmp_path))
    with pytest.raises(UserError, match="129 is beyond the 128 positions that its model declares; lower it to 128"):
        stage_ropes(config, stages(None, seq_len=129))


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        (RopeConfig(type="dynamic"), "type: 'dynamic' is not for training: its frequencies follow the longest"),
        (RopeConfig(type="longrope"), "type: 'longrope' is not for training"),
        (RopeConfig(type="yarm"), "type: 'yarm' is unknown; did you mean 'yarn'"),
        (RopeConfig(type="abf", factor=2.0), r"factor is not read by 'abf' \(it reads theta\)"),
        (RopeConfig(type="linear", factor=0.5), "factor: 0.5 must be at least 1"),
        (RopeConfig(type="yarn", beta_slow=64), r"beta_slow: 64 must be positive and below beta_fast"),
    ],
)
def test_a_wrong_rope_is_named_with_its_fix(rope, message):
    assert any(re.match(message, one) for one in rope_problems(rope)), rope_problems(rope)
