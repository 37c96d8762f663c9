"""The C kernels of a CPU against float64, on any number of threads, broken on purpose, and without a compiler."""

import pytest
import torch
from cpt_kernels import Spec, cross_entropy, document_attention, linear_kl, native, registry, rms_norm, rope
from cpt_kernels.cross_entropy import native_rows
from cpt_kernels.registry import KernelRefusedError, choose
from cpt_kernels.verify import cases_attention, cases_layers
from cpt_kernels.verify.case import check_numbers, check_poison
from cpt_kernels.verify.self_test import native_refusal, native_trial

CPU = Spec("cpu", "float32")
OPERATIONS = (
    "rms_norm",
    "add_rms_norm",
    "swiglu",
    "rope",
    "linear_cross_entropy",
    "linear_kl",
    "document_attention",
)
BREAKS = {
    "in[c] * scale * (weight[c] + offset);": "in[c] * scale * weight[c] * 1.00001f;",
    "* (1.0f + g[c] * (1.0f - sigmoid))": "* (1.0f + g[c])",
    "b[i + half] = high * c[i] + low * turn;": "b[i + half] = high * c[i] - low * turn;",
    "row[label] -= label_share;": "row[label] -= share[r] * 1.00001f;",
    "* (teacher_log - (s[w] - largest) + distance)": "* (teacher_log - (s[w] - largest))",
    "const float inverse = 1.0f / total[r];": "const float inverse = 1.0f / (total[r] + 1e-3f);",
}
"""A mistake in each kernel."""


@pytest.fixture
def forgetful(monkeypatch, tmp_path):
    """No compiler, library, verdict or choice is remembered, before or after."""

    def forget():
        for cached in (native._compiler, native._library, native.build_key):
            cached.cache_clear()

    monkeypatch.setattr(registry, "_chosen", {})
    monkeypatch.setattr("cpt_kernels.verify.self_test._verdicts", {})
    monkeypatch.setenv("CPT_KERNELS_CACHE", str(tmp_path))
    forget()
    yield monkeypatch
    forget()


@pytest.mark.parametrize("operation", OPERATIONS)
def test_results_and_gradients_are_those_of_float64(operation):
    findings = native_trial(operation)
    assert findings
    assert [one for one in findings if not one.good] == []
    assert choose(operation, "auto", CPU).name == "native"


def test_nothing_becomes_finite_or_not_that_is_not_so_in_float64():
    cases = [case for case in cases_layers.CASES if case.poison and not case.large]
    findings = [one for case in cases for one in check_poison(case, torch.float32, "native")]
    assert findings
    assert [one for one in findings if not one.good] == []


def test_long_documents_windows_and_earlier_keys_attend_as_in_float64():
    for case in (
        cases_attention.attention_case((9, 3), (700, 1, 69), 64),
        cases_attention.attention_case((2, 1), (600, 90), 16, keys_before=100, window=33),
    ):
        assert [one for one in check_numbers(case, torch.float32, backend="native") if not one.good] == []


def test_no_document_changes_another_by_a_bit():
    assert [one.good for one in cases_attention.check_documents("native")] == [True]


def test_results_have_the_same_bits_on_one_thread_and_on_three():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 192, generator=generator, requires_grad=True)
    weight = torch.randn(192, generator=generator, requires_grad=True)
    borders = torch.tensor([0, 170, 300], dtype=torch.int32)

    def results():
        y = rms_norm(x, weight, backend="native")
        heads = y.view(300, 6, 32).transpose(0, 1)
        out = document_attention(heads, heads[:2], heads[2:4], borders, backend="native")
        return [y, out, *torch.autograd.grad(out.square().sum(), [x, weight])]

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = results()
        torch.set_num_threads(3)
        assert all(torch.equal(a, b) for a, b in zip(alone, results(), strict=True))
    finally:
        torch.set_num_threads(threads)


def test_what_a_table_or_a_vocabulary_does_not_have_is_not_read():
    turned, _ = rope(*[torch.ones(1, 3, 4)] * 2, *[torch.ones(3, 2)] * 2, torch.tensor([-1, 2, 3]), backend="native")
    assert torch.isnan(turned[0, :, 0]).tolist() == [True, False, True]
    with pytest.raises(IndexError, match=r"neither in \[0, 5\) nor -100"):
        native_rows(torch.ones(2, 5), torch.tensor([1, 5]), None, 0.0, -100, 1.0, None)


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_a_word_that_the_teacher_excludes_and_a_masked_token_without_numbers_add_nothing(backend):
    hidden, weight = torch.tensor([[1e-10], [1e30]], requires_grad=True), torch.tensor([[1e10], [2e10], [3e10]])
    teacher = torch.full((2, 1), 1e10), torch.tensor([[1e-10], [2e-10], [-1e30]])  # logits 1, 2 and -inf
    masks = torch.tensor([1.0, 0.0])
    loss, kl = linear_kl(hidden, weight, *teacher, divisor=1.0, token_weights=masks, backend=backend)
    expected = torch.tensor([1.0, 2.0]).log_softmax(0)
    expected = (expected.exp() * (expected - torch.tensor([1.0, 2.0, 3.0]).log_softmax(0)[:2])).sum()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.isnan(kl).tolist() == [False, True]
    (gradient,) = torch.autograd.grad(loss, hidden)
    assert gradient[0] != 0
    assert gradient[1] == 0


def test_without_a_compiler_torch_computes_and_the_reason_is_named(forgetful, caplog):
    forgetful.setenv("CC", "/no/such/compiler")
    with caplog.at_level("INFO"):
        assert choose("rms_norm", "auto", CPU).name == "torch"
    assert "not native: there is no C compiler" in caplog.text
    with pytest.raises(KernelRefusedError, match="there is no C compiler"):
        choose("rms_norm", "native", CPU)


def test_a_compiler_that_fails_is_a_reason_too(forgetful):
    forgetful.setattr(native, "FLAGS", ("-no-such-flag",))
    assert "cannot be compiled or loaded: " in str(native.native_supports(CPU))


def test_other_dtypes_and_soft_caps_are_refused():
    assert "not in bfloat16" in str(native.native_supports(Spec("cpu", "bfloat16")))
    assert "no soft cap" in str(native.native_supports(Spec("cpu", "float32", frozenset({"softcap"}))))
    logits = torch.randn(3, 5)
    with pytest.raises(ValueError, match="no backend 'native'"):
        cross_entropy(logits, torch.tensor([1, 2, 3]), divisor=1.0, backend="native")


def test_a_mistake_in_any_kernel_fails_its_trial_and_auto_passes_on(forgetful, tmp_path):
    broken = []
    for path in native.SOURCES:
        text = path.read_text()
        for right, wrong in BREAKS.items():
            text = text.replace(right, wrong)
        broken.append(tmp_path / path.name)
        broken[-1].write_text(text)
    (tmp_path / native.HEADER.name).write_text(native.HEADER.read_text())
    sources = "".join(path.read_text() for path in native.SOURCES)
    assert all(sources.count(right) == 1 for right in BREAKS)
    forgetful.setattr(native, "SOURCES", broken)
    assert [operation for operation in OPERATIONS if native_refusal(operation) is None] == []
    assert choose("swiglu", "auto", CPU).name == "torch"
