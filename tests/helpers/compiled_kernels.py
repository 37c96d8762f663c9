"""Each Triton operation under torch.compile without a graph break, with the eager result; then under checkpointing.

Run with TRITON_INTERPRET=1, in a process of its own. Prints the name of each operation that holds.
"""

import torch
from cpt_kernels import (
    add_rms_norm,
    choose,
    cross_entropy,
    document_attention,
    linear_cross_entropy,
    rms_norm,
    rope,
    spec_of,
    swiglu,
)
from torch.utils.checkpoint import checkpoint

BORDERS = torch.tensor([0, 2, 4], dtype=torch.int32)
TABLES = torch.arange(4.0)[:, None] * torch.tensor([1.0, 0.1])
LABELS = torch.tensor([1, -100, 3, 0])


def leaves(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def first(result):
    return result[0] if isinstance(result, tuple) else result


def results(function, inputs):
    value = first(function(*inputs))
    return [value, *torch.autograd.grad(value.square().sum(), inputs)]


def holds(name, function, inputs):
    eager = results(function, inputs)
    compiled = results(torch.compile(function, backend="aot_eager", fullgraph=True), inputs)
    again = results(lambda *given: checkpoint(function, *given, use_reentrant=False), inputs)
    for value, expected, recomputed in zip(compiled, eager, again, strict=True):
        torch.testing.assert_close(value, expected)
        assert torch.equal(recomputed, expected)
    print(name)


def main():
    for operation in ("rms_norm", "add_rms_norm", "swiglu", "rope", "cross_entropy", "document_attention"):
        choose(operation, "triton", spec_of(torch.ones(1)))
    holds("rms_norm", lambda x, w: rms_norm(x, w, backend="triton"), leaves((4, 6), (6,)))
    holds("add_rms_norm", lambda x, r, w: add_rms_norm(x, r, w, backend="triton")[1], leaves((4, 6), (4, 6), (6,)))
    holds("swiglu", lambda g, u: swiglu(g, u, backend="triton"), leaves((4, 6), (4, 6)))
    turn = lambda q, k: torch.cat(rope(q, k, TABLES.cos(), TABLES.sin(), backend="triton"))  # noqa: E731
    holds("rope", turn, leaves((2, 4, 4), (1, 4, 4)))
    holds("cross_entropy", lambda x: cross_entropy(x, LABELS, divisor=2.0, backend="triton")[0], leaves((4, 7)))
    attend = lambda q, k, v: document_attention(q, k, v, BORDERS, backend="triton")  # noqa: E731
    holds("attention", attend, leaves((2, 4, 16), (1, 4, 16), (1, 4, 16)))
    states = leaves((4, 6), (7, 6))
    loss = lambda h, w: linear_cross_entropy(h, w, LABELS, divisor=2.0, backend="triton")[0]  # noqa: E731
    eager = results(loss, states)
    again = results(lambda *given: checkpoint(loss, *given, use_reentrant=False), states)
    assert all(torch.equal(a, b) for a, b in zip(eager, again, strict=True))
    print("loss")


if __name__ == "__main__":
    main()
