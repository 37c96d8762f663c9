"""What loads, what the loaded model is, and each reason why a folder is refused."""

import json
import os
import shutil

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTJConfig,
    GPTJForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    HyperCLOVAXConfig,
    HyperCLOVAXForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
)

from cpt_dist.config import ModelConfig
from cpt_dist.errors import UserError
from cpt_dist.model.flops import mean_context
from cpt_dist.model.folder import check_model_folder
from cpt_dist.model.load import load_model
from cpt_dist.model.packed import hf_name
from tests.helpers.models import FAMILIES, save, tiny_gpt2, tiny_llama, tiny_mistral, tiny_qwen2

SMALL = {
    "vocab_size": 211,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


@pytest.fixture
def folder(tmp_path):
    return tiny_llama(tmp_path / "llama")


def load(folder, **options):
    return load_model(ModelConfig(path=str(folder), **options))


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    config = {key: value for key, value in (config | changes).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))


def one_document(num_tokens=12, vocab=200):
    ids = torch.arange(1, num_tokens + 1) * 7 % vocab
    return ids, torch.arange(num_tokens), torch.tensor([0, num_tokens], dtype=torch.int32)


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_keep_their_names_and_their_ties(family, tmp_path):
    folder = FAMILIES[family](tmp_path)
    original, model = AutoModelForCausalLM.from_pretrained(folder), load(folder)
    assert [hf_name(name) for name, _ in model.named_parameters()] == [name for name, _ in original.named_parameters()]
    tied = original.config.tie_word_embeddings
    assert (model.head.weight is model.hf.get_input_embeddings().weight) == tied
    assert list(model.tied_names()) == (["lm_head.weight"] if tied else [])
    assert model.num_parameters == original.num_parameters()
    assert len(model.decoder_layers()) == 2
    assert model.training


def test_dropout_of_the_model_is_switched_off(tmp_path):
    model = load(tiny_gpt2(tmp_path))
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0}


def test_loading_in_bf16_gives_bf16_weights_and_an_fp32_loss(folder):
    model = load_model(ModelConfig(path=str(folder)), torch.bfloat16)
    ids, positions, borders = one_document()
    loss, nll = model(ids, ids, positions, borders, 12.0)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert loss.dtype == nll.dtype == torch.float32


SCALED = {
    "cohere": (CohereForCausalLM, CohereConfig(**SMALL, logit_scale=0.3)),
    "granite": (GraniteForCausalLM, GraniteConfig(**SMALL, logits_scaling=7.0)),
    "soft-capped": (
        Gemma2ForCausalLM,
        Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=0.5, attn_logit_softcapping=None),
    ),
}


@pytest.mark.parametrize("kind", SCALED)
def test_scale_and_soft_cap_of_the_logits_are_in_the_logits_and_in_the_loss(kind, tmp_path):
    folder = save(*SCALED[kind], tmp_path, seed=1)
    model = load(folder)
    ids, positions, borders = one_document()
    expected = AutoModelForCausalLM.from_pretrained(folder).eval()(input_ids=ids[None]).logits[0].float()
    logits = model.logits(ids, positions, borders)
    assert (logits - expected).norm() / expected.norm() < 1e-6
    loss, _ = model(ids, ids, positions, borders, 12.0)
    assert loss.item() == pytest.approx(torch.nn.functional.cross_entropy(expected, ids).item(), rel=1e-6)


def test_logits_are_never_whole_in_training(folder):
    model = load(folder, loss_chunk_tokens=4)
    ids, positions, borders = one_document()
    shapes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: shapes.append(tuple(t.shape)) or t, lambda t: t):
        model(ids, ids, positions, borders, 12.0)
    assert (12, 1001) not in shapes


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: shutil.rmtree(f), "there is no folder"),
        (lambda f: (f / "config.json").unlink(), "has no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "is no JSON"),
        (lambda f: (f / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "only pytorch_model.bin"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\x10"), "cut off in its header"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\x02" + b"\0" * 7 + b"[]"), "its header is damaged"),
        (lambda f: os.truncate(f / "model.safetensors", 20_000), "has 20000 bytes, its header says"),
        (
            lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}'),
            "lacks model-1.safetensors",
        ),
        (lambda f: edit_config(f, num_hidden_layers=3), r"lack model.layers.2.input_layernorm.weight.* and 6 more"),
        (lambda f: edit_config(f, hidden_size=128), "does not load"),
        (lambda f: edit_config(f, model_type="mystery", auto_map={"AutoConfig": "x.X"}), "own Python code"),
        (lambda f: edit_config(f, model_type="mystery"), "model_type 'mystery' is unknown"),
        (lambda f: edit_config(f, architectures=["LlamaForSequenceClassification"]), "no causal language model"),
    ],
)
def test_a_folder_that_cannot_be_trained_is_refused_in_one_line(folder, spoil, message):
    spoil(folder)
    with pytest.raises(UserError, match=message) as refusal:
        load(folder)
    assert "\n" not in str(refusal.value)
    assert str(folder) in str(refusal.value)


UNSUPPORTED = {
    "soft-capped attention": (Gemma2ForCausalLM, Gemma2Config(**SMALL, head_dim=8), "softcap"),
    "attention of its own": (
        GPTJForCausalLM,
        GPTJConfig(vocab_size=211, n_embd=32, n_layer=2, n_head=2, rotary_dim=8),
        "own attention",
    ),
    "convolutions": (
        Lfm2ForCausalLM,
        Lfm2Config(**SMALL, layer_types=["full_attention", "conv"]),
        "layers of type conv",
    ),
    "an unknown logit scale": (HyperCLOVAXForCausalLM, HyperCLOVAXConfig(**SMALL, logits_scaling=2.0), "other logits"),
    "no causal head": (
        BertForMaskedLM,
        BertConfig(vocab_size=211, hidden_size=32, num_hidden_layers=1, num_attention_heads=2),
        "no causal",
    ),
}


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_an_architecture_that_would_train_wrongly_is_refused(kind, tmp_path):
    model_class, config, message = UNSUPPORTED[kind]
    with pytest.raises(UserError, match=message):
        load(save(model_class, config, tmp_path, seed=0))


def test_a_layer_that_ignores_the_borders_is_noticed_in_the_forward_pass(folder):
    model = load(folder)
    model.decoder_layers()[1].self_attn.forward = lambda hidden_states, **_: (hidden_states, None)
    ids, positions, borders = one_document()
    with pytest.raises(UserError, match="only 1 of 2 layers"):
        model(ids, ids, positions, borders, 12.0)


def test_a_window_that_does_not_reach_the_attention_is_noticed(tmp_path):
    model = load(tiny_mistral(tmp_path))
    model.hf.config.sliding_window = None
    ids, positions, borders = one_document()
    with pytest.raises(UserError, match="sliding window that it does not pass on"):
        model(ids, ids, positions, borders, 12.0)


def test_a_model_in_several_files_is_complete(folder, tmp_path):
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path / "split", max_shard_size="200KB")
    check_model_folder(tmp_path / "split")
    assert load(tmp_path / "split").num_parameters == load(folder).num_parameters


def test_flops_count_each_matrix_the_head_and_the_attention_once(tmp_path):
    hidden, inner, vocab = 64, 96, 1001
    per_layer = hidden * (64 + 32 + 32 + 64) + 3 * hidden * inner
    for folder in (tiny_llama(tmp_path / "a"), tiny_qwen2(tmp_path / "b")):  # own head and tied head
        model = load(folder)
        attention = 2 * 12 * 64 * (100 + 1) / 2
        assert model.flops_per_token(100) == 6 * (2 * per_layer + vocab * hidden) + attention


def test_mean_context_is_the_mean_over_the_tokens_of_what_each_one_sees():
    for seq_len, window in ((1, None), (10, None), (10, 4), (10, 10), (10, 99)):
        seen = [min(t + 1, window or t + 1) for t in range(seq_len)]
        assert mean_context(seq_len, window) == sum(seen) / seq_len
