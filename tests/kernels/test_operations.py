"""The references are differentiated rightly, refuse what does not fit, and the kernels' operations compile."""

import pytest
import torch
from cpt_kernels import (
    Softening,
    add_rms_norm,
    cross_entropy,
    document_attention,
    linear_cross_entropy,
    linear_kl,
    rms_norm,
    rope,
    swiglu,
)
from cpt_kernels.linear_kl import reference as kl_reference

BORDERS = torch.tensor([0, 2, 5], dtype=torch.int32)
LABELS = torch.tensor([1, -100, 3])


def rand(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)


ANGLES = torch.arange(5, dtype=torch.float64)[:, None] * torch.tensor([1.0, 0.1])
REFERENCES = {
    "rms_norm": (lambda x, w: rms_norm(x, w, 1e-5, 1.0), rand(3, 4), rand(4)),
    "add_rms_norm": (lambda x, r, w: add_rms_norm(x, r, w), rand(3, 4), rand(3, 4, seed=1), rand(4)),
    "swiglu": (swiglu, rand(3, 4), rand(3, 4, seed=1)),
    "rope": (lambda q, k: rope(q, k, ANGLES.cos(), ANGLES.sin()), rand(2, 5, 6), rand(1, 5, 6)),
    "cross_entropy": (
        lambda x: cross_entropy(x, LABELS, divisor=2.0, z_loss=0.1, softcap=3.0, logit_scale=0.5)[0],
        rand(3, 5),
    ),
    "linear_cross_entropy": (
        lambda h, w: linear_cross_entropy(
            h, w, LABELS, divisor=2.0, z_loss=0.1, label_weights=torch.tensor([0.5, 1.0, 2.0]), chunk_tokens=2
        )[0],
        rand(3, 4),
        rand(5, 4),
    ),
    "linear_kl": (
        lambda h, w: linear_kl(
            h,
            w,
            rand(3, 2).detach(),
            rand(5, 2).detach(),
            divisor=2.0,
            token_weights=torch.tensor([1.0, 0.0, 2.0]),
            softening=Softening(2.0, 0.5, 3.0, 2.0, 4.0),
            chunk_tokens=2,
        )[0],
        rand(3, 4),
        rand(5, 4),
    ),
    "document_attention": (
        lambda q, k, v: document_attention(q, k, v, BORDERS, window=2, keys_before=1),
        rand(2, 5, 3),
        rand(1, 6, 3),
        rand(1, 6, 3, seed=1),
    ),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_gradients_of_the_reference_are_those_of_its_value(name):
    function, *inputs = REFERENCES[name]
    assert torch.autograd.gradcheck(function, inputs)


def test_the_chunked_divergence_is_that_of_the_definition():
    inputs = [rand(7, 4), rand(9, 4), rand(7, 3), rand(9, 3)]
    options = {"divisor": 3.0, "token_weights": torch.rand(7), "softening": Softening(2.0, softcap=4.0)}
    loss, kl = linear_kl(*inputs, chunk_tokens=3, **options)
    expected, expected_kl = kl_reference(*inputs, **options)
    assert torch.allclose(loss, expected)
    assert torch.allclose(kl, expected_kl)
    for value, wanted in zip(
        torch.autograd.grad(loss, inputs[:2]), torch.autograd.grad(expected, inputs[:2]), strict=True
    ):
        assert torch.allclose(value, wanted)


def test_no_logits_of_either_model_exist_for_more_than_a_chunk():
    from tests.kernels.test_linear_cross_entropy import LargestAllocation

    student, teacher = torch.randn(64, 4, requires_grad=True), torch.randn(64, 6)
    heads = torch.randn(500, 4, requires_grad=True), torch.randn(500, 6)
    with LargestAllocation() as seen:
        linear_kl(student, heads[0], teacher, heads[1], divisor=1.0, chunk_tokens=8)[0].backward()
    assert seen.elements == 8 * 500


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rms_norm(torch.ones(2, 3), torch.ones(2)), "weight"),
        (lambda: swiglu(torch.ones(2, 3), torch.ones(2, 4)), "gate"),
        (lambda: rope(torch.ones(1, 2, 4), torch.ones(1, 3, 4), torch.ones(3, 2), torch.ones(3, 2)), "do not fit"),
        (lambda: rope(*[torch.ones(1, 3, 4)] * 2, *[torch.ones(3, 2).bfloat16()] * 2), "in fp32"),
        (lambda: cross_entropy(torch.ones(2, 3), torch.ones(2).long(), divisor=0.0), "divisor 0.0"),
        (lambda: cross_entropy(torch.ones(2, 3), torch.ones(2).long(), divisor=1.0, z_loss=-1.0), "z_loss -1.0"),
        (lambda: linear_kl(*[torch.ones(2, 3)] * 4, divisor=0.0), "divisor 0.0"),
        (lambda: Softening(temperature=0.0), "temperature 0.0"),
        (lambda: document_attention(*[torch.ones(2, 5, 3)] * 3, BORDERS, window=0), "window 0"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.e2e
def test_the_kernels_work_under_compile_and_checkpointing(interpreted):
    done = interpreted("tests.helpers.compiled_kernels")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == ["rms_norm", "add_rms_norm", "swiglu", "rope", "cross_entropy", "attention", "loss"]
