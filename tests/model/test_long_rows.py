"""Promises of the options that save memory on long rows: the same loss and gradients, and the memory that they say."""

import pytest
import torch
from cpt_kernels import linear_cross_entropy
from cpt_kernels.linear_cross_entropy import reference
from torch import nn

from cpt_dist.config import ModelConfig
from cpt_dist.errors import UserError
from cpt_dist.model.activation_offload import HostOffload
from cpt_dist.model.chunked_mlp import ChunkedMlp, chunk_mlps
from cpt_dist.model.load import load_model
from tests.helpers.memory import peak_bytes
from tests.helpers.models import FAMILIES, tiny_llama

OPTIONS = {
    "checkpointed": {"activation_checkpointing": True},
    "offloaded": {"activation_checkpointing": True, "activation_offload": True},
    "chunked": {"mlp_chunk_tokens": 16},
    "all": {"activation_checkpointing": True, "activation_offload": True, "mlp_chunk_tokens": 16},
}


def row(num_tokens, vocab=1001, documents=3):
    """The arguments of a forward pass over one row."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocab, (num_tokens,), generator=generator)
    borders = torch.linspace(0, num_tokens, documents + 1).int()
    labels, positions = ids.roll(-1), torch.arange(num_tokens)
    labels[borders[1:] - 1] = -100
    positions -= borders.repeat_interleave(borders.diff(append=borders[-1:]))
    return ids, labels, positions, borders, 100.0


def step(model, inputs):
    model.zero_grad(set_to_none=True)
    loss, _ = model(*inputs)
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("family", FAMILIES)
def test_no_option_changes_loss_or_gradients(family, tmp_path):
    folder = FAMILIES[family](tmp_path)
    inputs = row(100)
    loss, gradients = step(load_model(ModelConfig(path=str(folder))), inputs)
    for name, options in OPTIONS.items():
        model = load_model(ModelConfig(path=str(folder), **options))
        assert isinstance(model.decoder_layers()[0].mlp, ChunkedMlp) == ("mlp_chunk_tokens" in options)
        other_loss, others = step(model, inputs)
        assert torch.isclose(other_loss, loss, rtol=1e-6, atol=0), name
        for parameter, gradient in gradients.items():
            difference = (others[parameter] - gradient).norm()
            assert difference <= 1e-6 * gradient.norm().clamp_min(1e-3), (name, parameter)


def test_what_is_kept_on_the_host_is_a_copy_of_each_layers_input_and_nothing_else(tmp_path, monkeypatch):
    kept, inputs, keep = [], [], HostOffload._keep

    def watched(self, tensor):
        kept.append((tensor.data_ptr(), keep(self, tensor)))
        return kept[-1][1]

    monkeypatch.setattr(HostOffload, "_keep", watched)
    model = load_model(ModelConfig(path=str(tiny_llama(tmp_path)), **OPTIONS["offloaded"]))
    for layer in model.decoder_layers():
        layer.register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0].detach().clone()))
    step(model, row(100))
    assert [tuple(one.host.shape) for _, one in kept] == [(1, 100, 64)] * 2
    assert all(torch.equal(one.host, given) for (_, one), given in zip(kept, inputs, strict=True))
    assert all(one.host.data_ptr() != pointer for pointer, one in kept)


def test_a_row_of_one_chunk_is_not_computed_twice(tmp_path):
    model = load_model(ModelConfig(path=str(tiny_llama(tmp_path)), mlp_chunk_tokens=50))
    calls = []
    model.decoder_layers()[0].mlp.gate_proj.register_forward_hook(lambda *_: calls.append(1))
    step(model, row(50))
    assert len(calls) == 1
    step(model, row(51))
    assert len(calls) == 1 + 2 * 2


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A model whose memory is that of its MLPs."""
    folder = tmp_path_factory.mktemp("wide")
    return tiny_llama(folder, hidden_size=32, intermediate_size=1024, num_hidden_layers=4)


def test_memory_of_a_long_row_is_that_of_a_chunk_and_of_the_layers_inputs(wide):
    tokens, chunk = 4096, 256
    inputs = row(tokens, documents=16)
    peaks = {}
    for name, options in {
        "plain": {},
        "checkpointed": {"activation_checkpointing": True},
        "chunked": {"mlp_chunk_tokens": chunk},
        "both": {"activation_checkpointing": True, "mlp_chunk_tokens": chunk},
    }.items():
        model = load_model(ModelConfig(path=str(wide), loss_chunk_tokens=64, **options))
        step(model, row(64))
        peaks[name] = peak_bytes(lambda model=model: step(model, inputs))
    intermediate = tokens * 1024 * 4
    assert peaks["plain"] > 4 * 3 * intermediate  # what each layer keeps: gate, up, and their product
    assert peaks["chunked"] < peaks["plain"] / 4
    assert peaks["chunked"] < intermediate * 4
    assert peaks["both"] < peaks["checkpointed"] / 3
    assert peaks["both"] < intermediate
    assert peaks["both"] < peaks["chunked"] * 0.6


def test_the_loss_of_a_long_row_holds_the_logits_of_a_chunk_and_stays_exact():
    tokens, hidden, vocab, chunk = 32768, 16, 211, 256
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(tokens, hidden, generator=generator).requires_grad_()
    weight = torch.randn(vocab, hidden, generator=generator).requires_grad_()
    labels = torch.randint(0, vocab, (tokens,), generator=generator)
    labels[::5] = -100
    divisor = float((labels >= 0).sum())

    def compute():
        return linear_cross_entropy(states, weight, labels, divisor=divisor, chunk_tokens=chunk)

    assert peak_bytes(compute) < 3 * chunk * vocab * 4 + 3 * tokens * hidden * 4
    loss, nll = compute()
    expected, expected_nll = reference(states, weight, labels, divisor=divisor)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert nll.tolist() == pytest.approx(expected_nll.tolist(), abs=1e-5)
    for found, wanted in zip(
        torch.autograd.grad(loss, (states, weight)), torch.autograd.grad(expected, (states, weight)), strict=True
    ):
        assert (found - wanted).norm() <= 1e-6 * wanted.norm()


class Layer(nn.Module):
    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


class Mixing(nn.Linear):
    def forward(self, hidden):
        return super().forward(hidden) + hidden.mean(1, keepdim=True)


class Pair(nn.Linear):
    def forward(self, hidden):
        return super().forward(hidden), None


class WithResidual(nn.Linear):
    def forward(self, hidden, residual):
        return super().forward(hidden) + residual


@pytest.mark.parametrize(
    ("layer", "named"),
    [
        (Layer(dense=nn.Linear(8, 8)), "no part called mlp"),
        (Layer(mlp=Mixing(8, 8)), "Mixing of a odd model is no function of each token alone"),
        (Layer(mlp=Pair(8, 8)), "Pair"),
        (Layer(mlp=WithResidual(8, 8)), "WithResidual"),
    ],
)
def test_a_layer_whose_mlp_cannot_be_cut_is_refused(layer, named):
    config = type("Config", (), {"model_type": "odd", "hidden_size": 8})
    with pytest.raises(UserError, match=named) as caught:
        chunk_mlps([layer], config, 4)
    assert "set it to 0" in str(caught.value)
