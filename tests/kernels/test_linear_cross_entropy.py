"""The chunked loss against its float64 definition: value, every gradient, edges and memory."""

import pytest
import torch
from cpt_kernels import linear_cross_entropy
from cpt_kernels.linear_cross_entropy import reference
from cpt_kernels.verify.self_test import native_refusal
from torch.utils._python_dispatch import TorchDispatchMode

VARIANTS = {
    "plain": {},
    "softcap": {"softcap": 5.0},
    "scaled": {"logit_scale": 0.25},
    "softcap and scaled": {"softcap": 3.0, "logit_scale": 2.0},
}


def make_inputs(num_tokens, hidden=24, vocab=101, dtype=torch.float32, seed=0, with_bias=True):
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(num_tokens, hidden, generator=generator).to(dtype).requires_grad_()
    weight = (torch.randn(vocab, hidden, generator=generator) * 0.3).to(dtype).requires_grad_()
    bias = torch.randn(vocab, generator=generator).to(dtype).requires_grad_() if with_bias else None
    labels = torch.randint(0, vocab, (num_tokens,), generator=generator)
    labels[::5] = -100
    return states, weight, bias, labels


def gradients(loss, *tensors):
    return torch.autograd.grad(loss * 0.7, tensors)


def whole_loss(states, weight, labels, **options):
    return linear_cross_entropy(states, weight, labels, divisor=1.0, **options)[0]


def relative_error(value, expected):
    expected = expected.detach().double()
    return float((value.detach().double() - expected).norm() / expected.norm().clamp_min(1e-300))


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_gradients_are_those_of_the_loss(options):
    states, weight, bias, labels = make_inputs(7, hidden=5, vocab=11, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda h, w, b: linear_cross_entropy(h, w, labels, divisor=3.0, bias=b, chunk_tokens=3, **options)[0],
        (states, weight, bias),
    )


@pytest.mark.parametrize("num_tokens", [1, 7, 64, 100])
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_fp32_equals_the_definition_to_1e_6(num_tokens, options):
    states, weight, bias, labels = make_inputs(num_tokens)
    labels[-1] = 3
    loss, nll = linear_cross_entropy(states, weight, labels, divisor=37.0, bias=bias, chunk_tokens=32, **options)
    expected, expected_nll = reference(states, weight, labels, divisor=37.0, bias=bias, **options)
    assert loss.dtype == nll.dtype == torch.float32
    assert not nll.requires_grad
    assert relative_error(loss, expected) < 1e-6
    assert relative_error(nll, expected_nll) < 1e-6
    inputs = (states, weight, bias)
    for value, wanted in zip(gradients(loss, *inputs), gradients(expected, *inputs), strict=True):
        assert relative_error(value, wanted) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_error_is_at_most_1_5_times_that_of_plain_torch(dtype):
    states, weight, bias, labels = make_inputs(100, dtype=dtype)
    inputs = (states, weight, bias)
    expected, _ = reference(states, weight, labels, divisor=80.0, bias=bias)
    plain = torch.nn.functional.cross_entropy(
        torch.nn.functional.linear(states, weight, bias).float(), labels, reduction="sum"
    )
    loss, nll = linear_cross_entropy(states, weight, labels, divisor=80.0, bias=bias, chunk_tokens=32)
    assert loss.dtype == nll.dtype == torch.float32
    assert relative_error(loss, expected) < 1e-6
    wanted = gradients(expected, *inputs)
    for value, torch_value, exact in zip(
        gradients(loss, *inputs), gradients(plain / 80.0, *inputs), wanted, strict=True
    ):
        assert value.dtype == dtype
        assert relative_error(value, exact) <= 1.5 * relative_error(torch_value, exact)


def test_logits_of_ten_thousand_neither_overflow_nor_lose_the_loss():
    weight = torch.eye(8)
    states = (torch.tensor([1e4, -1e4, 1e4 - 3, 0, 0, 0, 0, 0]).expand(3, 8)).clone().requires_grad_()
    labels = torch.tensor([0, 1, 2])
    loss, nll = linear_cross_entropy(states, weight, labels, divisor=1.0)
    _, expected = reference(states, weight, labels, divisor=1.0)
    assert torch.allclose(nll.double(), expected, rtol=1e-6)
    (gradient,) = torch.autograd.grad(loss, states)
    assert torch.isfinite(gradient).all()


def test_chunk_size_changes_no_token_by_more_than_rounding():
    states, weight, bias, labels = make_inputs(100)
    losses = [
        linear_cross_entropy(states, weight, labels, divisor=80, bias=bias, chunk_tokens=c)[0]
        for c in (1, 33, 100, 512)
    ]
    assert max(relative_error(loss, losses[0]) for loss in losses) < 1e-6


def test_all_labels_ignored_give_loss_and_gradients_of_zero():
    states, weight, bias, labels = make_inputs(9)
    loss, nll = linear_cross_entropy(states, weight, torch.full_like(labels, -100), divisor=4.0, bias=bias)
    assert loss == 0
    assert not nll.any()
    assert not any(gradient.any() for gradient in gradients(loss, states, weight, bias))


def test_no_tokens_give_loss_and_gradients_of_zero():
    states, weight, _, labels = make_inputs(0, with_bias=False)
    loss, nll = linear_cross_entropy(states, weight, labels, divisor=4.0)
    assert loss == 0
    assert nll.shape == (0,)
    assert not any(gradient.any() for gradient in gradients(loss, states, weight))


def test_divisor_may_be_a_tensor():
    states, weight, _, labels = make_inputs(20)
    by_tensor, _ = linear_cross_entropy(states, weight, labels, divisor=torch.tensor(16.0))
    by_float, _ = linear_cross_entropy(states, weight, labels, divisor=16.0)
    assert torch.equal(by_tensor, by_float)
    for a, b in zip(gradients(by_tensor, states, weight), gradients(by_float, states, weight), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("frozen", ["states", "weight"])
def test_a_frozen_input_gets_no_gradient_and_changes_no_other(frozen):
    states, weight, _, labels = make_inputs(40)
    full = dict(zip(("states", "weight"), gradients(whole_loss(states, weight, labels), states, weight), strict=True))
    inputs = {"states": states, "weight": weight}
    inputs[frozen].requires_grad_(False)
    trained = next(name for name in inputs if name != frozen)
    loss = whole_loss(states, weight, labels)
    assert torch.equal(gradients(loss, inputs[trained])[0], full[trained])


class LargestAllocation(TorchDispatchMode):
    """Elements of the largest tensor made inside, views aside, and how often a matrix product ran."""

    def __init__(self):
        super().__init__()
        self.elements, self.products = 0, 0
        for operation in ("linear_cross_entropy", "linear_kl"):
            native_refusal(operation)  # the trial of the C kernels makes tensors of its own, once on each machine

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and not result._is_view():
            self.elements = max(self.elements, result.untyped_storage().nbytes() // result.element_size())
        self.products += "mm" in func.name()
        return result


@pytest.mark.parametrize("num_chunks", [1, 4, 16])
def test_no_tensor_is_larger_than_one_chunk_of_logits(num_chunks):
    states, weight, _, labels = make_inputs(256, hidden=4, vocab=500, with_bias=False)
    chunk = 256 // num_chunks
    with LargestAllocation() as seen:
        linear_cross_entropy(states, weight, labels, divisor=1.0, chunk_tokens=chunk)[0].backward()
    assert seen.elements == max(chunk, 4) * 500


def test_backward_keeps_the_gradients_and_no_logits():
    states, weight, _, labels = make_inputs(256, hidden=4, vocab=500, with_bias=False)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t):
        linear_cross_entropy(states, weight, labels, divisor=1.0, chunk_tokens=64)
    assert saved == [states.shape, weight.shape]


def test_without_gradients_only_the_logits_are_computed():
    states, weight, _, labels = make_inputs(64, with_bias=False)
    with torch.no_grad(), LargestAllocation() as seen:
        linear_cross_entropy(states, weight, labels, divisor=1.0, chunk_tokens=16)
    assert seen.products == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"divisor": 0.0}, "divisor 0.0 must be positive"),
        ({"chunk_tokens": 0}, "chunk_tokens 0"),
        ({"softcap": -1.0}, "softcap -1.0"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, "labels"),
        ({"bias": torch.zeros(3)}, "bias"),
        ({"backend": "cuda_magic"}, "no backend 'cuda_magic'; known: auto, triton, native, torch"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused_by_name(change, message):
    states, weight, _, labels = make_inputs(8)
    request = {"labels": labels, "divisor": 1.0} | change
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(states, weight, **request)
