"""Kernels in a transformers model: by exact class, counted, the same results, and no trace once they are out."""

import pytest
import torch

from cpt_dist.config import ModelConfig
from cpt_dist.errors import UserError
from cpt_dist.kernels_config import LAYER_OPERATIONS, KernelsConfig
from cpt_dist.model.kernels import install_kernels, remove_kernels
from cpt_dist.model.load import load_model
from tests.helpers import models

ALL = dict.fromkeys(LAYER_OPERATIONS, "torch")
FAMILIES = {
    "llama": (models.tiny_llama, {}, 5),
    "mistral": (models.tiny_mistral, {}, 5),
    "qwen2": (models.tiny_qwen2, {}, 5),
    "qwen3": (models.tiny_qwen3, {}, 9),
}


def loss_and_gradients(model):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 1001, (30,), generator=generator)
    labels = tokens.roll(-1).masked_fill(torch.tensor([*[False] * 12, True, *[False] * 16, True]), -100)
    positions = torch.cat([torch.arange(13), torch.arange(17)])
    loss, _ = model(tokens, labels, positions, torch.tensor([0, 13, 30]), divisor=28.0)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return loss.detach(), gradients


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_with_kernels_has_the_losses_and_gradients_that_it_had(family, tmp_path):
    build, changes, norms = FAMILIES[family]
    config = ModelConfig(path=str(build(tmp_path, **changes)))
    plain = load_model(config)
    fused = load_model(config, kernels=KernelsConfig(**ALL))
    assert fused.kernels == {"rms_norm": norms, "add_rms_norm": 2, "rope": 2, "swiglu": 2}
    assert list(fused.state_dict()) == list(plain.state_dict())
    expected, wanted = loss_and_gradients(plain)
    loss, gradients = loss_and_gradients(fused)
    assert torch.allclose(loss, expected, rtol=1e-6)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(gradients, wanted, strict=True))


def test_removing_kernels_leaves_the_classes_and_bits_that_were_there(tmp_path):
    model = load_model(ModelConfig(path=str(models.tiny_llama(tmp_path))))
    before, classes = loss_and_gradients(model), [type(module) for module in model.modules()]
    counts = install_kernels(model, KernelsConfig(**ALL), "cpu", torch.float32).counts
    changed = sum(a is not type(b) for a, b in zip(classes, model.modules(), strict=True))
    assert changed == sum(counts.values()) + 1  # and the rotary embedding
    assert remove_kernels(model) == changed
    assert [type(module) for module in model.modules()] == classes
    after = loss_and_gradients(model)
    assert torch.equal(before[0], after[0])
    assert all(torch.equal(a, b) for a, b in zip(before[1], after[1], strict=True))


def test_rope_keeps_its_tables_in_fp32_in_a_model_of_16_bits(tmp_path):
    model = load_model(ModelConfig(path=str(models.tiny_llama(tmp_path))), kernels=KernelsConfig(rope="torch"))
    rotary = model.hf.base_model.rotary_emb
    cos, _ = rotary(torch.zeros(1, 3, 64, dtype=torch.bfloat16), torch.arange(3)[None])
    assert cos.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rms_norm": "triton"}, r"kernels.rms_norm: 'triton': .*Triton needs a GPU.*set it to auto or model"),
        ({"linear_cross_entropy": "triton"}, r"kernels.linear_cross_entropy: 'triton': .*Triton needs a GPU"),
        ({"attention": "triton"}, r"model.attention: 'triton': .*Triton needs a GPU"),
    ],
)
def test_a_kernel_that_cannot_run_is_refused_with_the_reason(change, message, tmp_path):
    path = str(models.tiny_llama(tmp_path))
    with pytest.raises(UserError, match=message):
        load_model(ModelConfig(path=path), kernels=KernelsConfig(**change))


def test_without_strict_the_reason_is_a_warning_and_auto_decides(tmp_path, caplog):
    kernels = KernelsConfig(rms_norm="triton", attention="triton", linear_cross_entropy="triton", strict=False)
    model = load_model(ModelConfig(path=str(models.tiny_llama(tmp_path))), kernels=kernels)
    loss_and_gradients(model)
    assert model.attention == "auto"
    assert "linear_cross_entropy: the wanted backend is not taken" in caplog.text


def test_a_class_that_is_not_known_is_refused_by_name(tmp_path):
    class OddRMSNorm(torch.nn.Module):
        def forward(self, x):
            return x * 2

    model = load_model(ModelConfig(path=str(models.tiny_llama(tmp_path))))
    model.decoder_layers()[1].input_layernorm = OddRMSNorm()
    with pytest.raises(UserError, match=r"modules of class .*OddRMSNorm, which it is not written for"):
        install_kernels(model, KernelsConfig(rms_norm="torch"), "cpu", torch.float32)


def test_layers_that_differ_in_number_are_refused(tmp_path):
    model = load_model(ModelConfig(path=str(models.tiny_llama(tmp_path))))
    model.decoder_layers()[1].input_layernorm = torch.nn.Identity()
    with pytest.raises(UserError, match=r"have \[2, 1\] modules of class .*LlamaRMSNorm"):
        install_kernels(model, KernelsConfig(rms_norm="torch"), "cpu", torch.float32)


def test_a_kernel_that_computes_something_else_is_taken_out_again(tmp_path, monkeypatch):
    model = load_model(ModelConfig(path=str(models.tiny_llama(tmp_path))))
    classes = [type(module) for module in model.modules()]
    monkeypatch.setattr("cpt_dist.model.kernels.swiglu", lambda gate, up, backend: gate * up)
    with pytest.raises(UserError, match=r"with swiglu replaced this llama model computes something else"):
        install_kernels(model, KernelsConfig(swiglu="torch"), "cpu", torch.float32)
    assert [type(module) for module in model.modules()] == classes


def test_gpt2_has_nothing_to_replace(tmp_path):
    model = load_model(ModelConfig(path=str(models.tiny_gpt2(tmp_path))))
    with pytest.raises(UserError, match=r"kernels.rms_norm: this gpt2 model has no module of a class like"):
        install_kernels(model, KernelsConfig(rms_norm="torch"), "cpu", torch.float32)
