"""A packed document is computed as if it were alone, forward and backward, in every family of models."""

import pytest
import torch
from cpt_kernels.registry import KernelRefusedError, Spec, choose
from transformers import AutoModelForCausalLM

from cpt_dist.config import ModelConfig
from cpt_dist.errors import UserError
from cpt_dist.model import attention
from cpt_dist.model.attention import RING, Documents, choose_backend, packed_attention
from cpt_dist.model.load import load_model
from tests.helpers.models import FAMILIES, tiny_llama

LENGTHS = (9, 9, 1, 20, 7)
A, B = 1, 3
"""Documents of LENGTHS: A is changed, B must not notice. B is longer than Mistral's sliding window."""


class Packed:
    """Random documents, flattened, with the labels of a causal language model."""

    def __init__(self, lengths=LENGTHS, vocab=1001, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.documents = [torch.randint(0, vocab, (n,), generator=generator) for n in lengths]
        self.cu_seqlens = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
        self.position_ids = torch.cat([torch.arange(n) for n in lengths])

    @property
    def input_ids(self):
        return torch.cat(self.documents)

    @property
    def labels(self):
        return torch.cat([torch.cat([d[1:], torch.tensor([-100])]) for d in self.documents])

    def rows(self, index):
        return slice(int(self.cu_seqlens[index]), int(self.cu_seqlens[index + 1]))

    def labels_of(self, index):
        only = torch.full_like(self.labels, -100)
        only[self.rows(index)] = self.labels[self.rows(index)]
        return only


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    return FAMILIES[request.param](tmp_path_factory.mktemp("model") / request.param)


@pytest.fixture(scope="module")
def model(folder):
    return load_model(ModelConfig(path=str(folder)))


def gradients(model, packed, labels):
    model.zero_grad(set_to_none=True)
    loss, nll = model(packed.input_ids, labels, packed.position_ids, packed.cu_seqlens, 10.0)
    loss.backward()
    return loss.detach(), nll, {name: p.grad.clone() for name, p in model.named_parameters()}


def test_changing_one_document_leaves_logits_and_gradients_of_another_bit_equal(model):
    packed, changed = Packed(), Packed()
    changed.documents[A] = (changed.documents[A] + 17) % 1001
    results = []
    for batch in (packed, changed):
        loss, _, by_parameter = gradients(model, batch, batch.labels_of(B))
        logits = model.logits(batch.input_ids, batch.position_ids, batch.cu_seqlens).detach()[batch.rows(B)]
        results.append((loss, logits, by_parameter))
    (loss, logits, by_parameter), (other_loss, other_logits, other_by_parameter) = results
    assert torch.equal(loss, other_loss)
    assert torch.equal(logits, other_logits)
    assert [name for name in by_parameter if not torch.equal(by_parameter[name], other_by_parameter[name])] == []


def test_no_gradient_flows_from_one_document_into_another(model):
    packed = Packed()
    seen = []
    handle = model.hf.get_input_embeddings().register_forward_hook(
        lambda m, i, out: out.retain_grad() or seen.append(out)
    )
    gradients(model, packed, packed.labels_of(B))
    handle.remove()
    by_position = seen[0].grad[0].abs().sum(-1)
    inside = torch.zeros_like(by_position, dtype=torch.bool)
    inside[packed.rows(B)] = True
    assert not by_position[~inside].any()
    assert by_position[inside][:-1].all()


def test_a_packed_document_equals_the_document_alone_in_transformers(model, folder):
    packed = Packed()
    original = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    logits = model.logits(packed.input_ids, packed.position_ids, packed.cu_seqlens).detach()
    for index, document in enumerate(packed.documents):
        with torch.no_grad():
            alone = original(input_ids=document[None]).logits[0]
        assert (logits[packed.rows(index)] - alone).norm() / alone.norm() < 1e-6


def test_the_loss_of_a_document_is_the_loss_of_transformers(model, folder):
    packed = Packed(lengths=(31,))
    original = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    expected = original(input_ids=packed.input_ids[None], labels=packed.input_ids[None]).loss
    loss, nll = model(packed.input_ids, packed.labels, packed.position_ids, packed.cu_seqlens, 30.0)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert nll.sum().item() / 30 == pytest.approx(expected.item(), rel=1e-6)


def test_gradients_of_packed_documents_are_the_sum_of_those_alone(model):
    packed = Packed()
    _, _, together = gradients(model, packed, packed.labels)
    total = {name: torch.zeros_like(g) for name, g in together.items()}
    for document in packed.documents:
        single = Packed(lengths=(len(document),))
        single.documents = [document]
        for name, gradient in gradients(model, single, single.labels)[2].items():
            total[name] += gradient
    for name, gradient in together.items():
        assert (gradient - total[name]).norm() <= 2e-6 * total[name].norm().clamp_min(1e-3), name


def test_activation_checkpointing_gives_equal_gradients(model, folder):
    packed = Packed()
    loss, _, expected = gradients(model, packed, packed.labels)
    checkpointed = load_model(ModelConfig(path=str(folder), activation_checkpointing=True))
    calls = []
    for layer in checkpointed.decoder_layers():
        layer.register_forward_hook(lambda *_: calls.append("layer"))
        norm = next(m for m in layer.modules() if not list(m.children()) and "Norm" in type(m).__name__)
        norm.register_forward_hook(lambda *_: calls.append("recomputed"))
    again, _, gradient = gradients(checkpointed, packed, packed.labels)
    assert calls.count("recomputed") == 2 * calls.count("layer")
    assert torch.equal(loss, again)
    assert [name for name in expected if not torch.equal(expected[name], gradient[name])] == []


def test_position_ids_alone_do_not_keep_documents_apart_in_transformers(tmp_path):
    """Why the borders travel on their own: with its default cache transformers 5 joins what position_ids separate."""
    original = AutoModelForCausalLM.from_pretrained(tiny_llama(tmp_path), attn_implementation="sdpa").eval()
    packed, changed = Packed(), Packed()
    changed.documents[A] = (changed.documents[A] + 17) % 1001
    logits = []
    for batch in (packed, changed):
        with torch.no_grad():
            out = original(input_ids=batch.input_ids[None], position_ids=batch.position_ids[None]).logits[0]
        logits.append(out[batch.rows(B)])
    assert (logits[0] - logits[1]).norm() / logits[0].norm() > 0.01


def oracle(query, key, value, cu_seqlens, window):
    """Attention [tokens, heads, head_dim] in float64 with a dense mask made from its definition."""
    groups = query.shape[1] // key.shape[1]
    q, k, v = (
        part[0].double() for part in (query, key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1))
    )
    place = torch.arange(query.shape[2])
    document = torch.searchsorted(cu_seqlens[1:].long(), place, right=True)
    allowed = (place[:, None] >= place[None]) & (document[:, None] == document[None])
    if window:
        allowed &= place[:, None] - place[None] < window
    scores = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).masked_fill(~allowed, float("-inf"))
    return (scores.softmax(-1) @ v).transpose(0, 1)


@pytest.mark.parametrize("window", [None, 2, 3, 8, 100])
@pytest.mark.parametrize("kv_heads", [1, 3, 6])
def test_attention_equals_its_definition(window, kv_heads, monkeypatch):
    monkeypatch.setattr(attention, "QUERY_BLOCK_TOKENS", 4)
    cu_seqlens = torch.tensor([0, 5, 10, 10, 11, 30, 37], dtype=torch.int32)
    torch.manual_seed(0)
    query = torch.randn(1, 6, 37, 8, requires_grad=True)
    key, value = (torch.randn(1, kv_heads, 37, 8, requires_grad=True) for _ in range(2))
    out, _ = packed_attention(
        torch.nn.Identity(), query, key, value, None, sliding_window=window, documents=Documents.of(cu_seqlens, 37)
    )
    expected = oracle(query, key, value, cu_seqlens, window)
    assert (out[0] - expected).norm() / expected.norm() < 1e-6
    weights = torch.randn_like(out)
    for gradient, wanted in zip(
        torch.autograd.grad((out * weights).sum(), (query, key, value)),
        torch.autograd.grad((expected * weights[0]).sum(), (query, key, value)),
        strict=True,
    ):
        assert (gradient - wanted).norm() / wanted.norm() < 1e-6


def test_equal_neighbours_attend_as_one_batch():
    documents = Documents.of(torch.tensor([0, 4, 8, 12, 12, 13, 17]), 17)
    assert documents.runs == [(0, 4, 3), (12, 1, 1), (13, 4, 1)]
    assert documents.longest == 4


@pytest.mark.parametrize("borders", [[0, 3], [1, 4], [0, 3, 2, 4], [0], []])
def test_borders_that_do_not_cover_the_tokens_are_refused(borders):
    with pytest.raises(ValueError, match="cu_seqlens must rise from 0 to 4"):
        Documents.of(torch.tensor(borders, dtype=torch.int32), 4)


def test_flash_attention_is_refused_with_its_reason_where_it_cannot_run():
    with pytest.raises(UserError, match=r"model.attention: 'flash_attn'.*GPU only, not on cpu; set it to auto"):
        choose_backend("flash_attn", "cpu", torch.bfloat16)
    for spec, reason in {
        Spec("cuda", "float32"): "bfloat16 or float16",
        Spec("cuda", "bfloat16", frozenset({"head_dim>256"})): "up to 256",
    }.items():
        with pytest.raises(KernelRefusedError, match=reason):
            choose("packed_attention", "flash_attn", spec)


@pytest.mark.parametrize(
    ("options", "named"),
    [({"softcap": 50.0}, "softcap"), ({"s_aux": torch.ones(1)}, "s_aux"), ({"is_causal": False}, "later tokens")],
)
def test_attention_that_is_more_than_causal_is_refused_by_name(options, named):
    part = torch.randn(1, 2, 3, 4)
    documents = Documents.of(torch.tensor([0, 3]), 3)
    with pytest.raises(UserError, match=named):
        packed_attention(torch.nn.Identity(), part, part, part, None, documents=documents, **options)


def test_a_model_that_drops_the_borders_is_refused():
    part = torch.randn(1, 2, 3, 4)
    with pytest.raises(UserError, match="without document borders"):
        packed_attention(torch.nn.Identity(), part, part, part, None)


def test_a_ring_gets_a_backend_that_computes_its_parts():
    assert choose_backend("auto", "cpu", torch.float32, features=frozenset({RING})).name == "sdpa_per_document"
    for backend in ("native", "triton"):
        with pytest.raises(UserError, match=f"model.attention: '{backend}'.*(parts of a ring|needs a GPU)"):
            choose_backend(backend, "cpu", torch.float32, features=frozenset({RING}))
