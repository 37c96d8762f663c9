"""Cross entropy of rows of logits by the online softmax (arXiv 1805.02867): a read for the loss, one for the gradient.

logits = softcap * tanh(scale * raw / softcap) where there is a soft cap, else scale * raw. The gradient may overwrite
the raw logits: an element is read and written by one program.
"""

import triton
import triton.language as tl

LOWEST: tl.constexpr = tl.constexpr(-3.0e38)


@triton.jit
def _tanh(x):
    # From exp of what is never positive, so that it cannot overflow.
    small = tl.exp(-2.0 * tl.abs(x))
    size = (1.0 - small) / (1.0 + small)
    # Below 0.01 the difference above would cancel; the third term is below 1e-9 of the first there.
    square = x * x
    return tl.where(tl.abs(x) < 0.01, x * (1.0 - square / 3.0), tl.where(x < 0, -size, size))


@triton.jit
def _capped(raw, scale, softcap, HAS_SOFTCAP: tl.constexpr):
    x = raw * scale
    if HAS_SOFTCAP:
        x = softcap * _tanh(x / softcap)
    return x


@triton.jit
def cross_entropy_forward(
    logits_pointer,
    labels_pointer,
    nll_pointer,
    lse_pointer,
    largest_pointer,
    log_total_pointer,
    row_stride,
    num_words,
    ignore_index,
    scale,
    softcap,
    HAS_SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    words = logits_pointer + row * row_stride
    label = tl.load(labels_pointer + row)
    largest = tl.full([], LOWEST, tl.float32)
    total = tl.full([], 0.0, tl.float32)
    for start in range(0, num_words, BLOCK):
        word = start + tl.arange(0, BLOCK)
        raw = tl.load(words + word, mask=word < num_words, other=0.0).to(tl.float32)
        x = tl.where(word < num_words, _capped(raw, scale, softcap, HAS_SOFTCAP), float("-inf"))
        new = tl.maximum(largest, tl.max(x, 0))
        total = total * tl.exp(largest - new) + tl.sum(tl.exp(x - new), 0)
        largest = new
    valid = label != ignore_index
    known = valid & (label >= 0) & (label < num_words)
    # A label that is no word gives NaN instead of what lies behind the row.
    raw_score = tl.load(words + label, mask=known, other=float("nan")).to(tl.float32)
    score = _capped(raw_score, scale, softcap, HAS_SOFTCAP)
    # The maximum leaves first: nll then has the error of the logits' differences, not of their size. For the same
    # reason the two parts of the log-sum-exp stay apart.
    tl.store(nll_pointer + row, tl.where(valid, tl.log(total) + (largest - score), 0.0))
    tl.store(lse_pointer + row, largest + tl.log(total))
    tl.store(largest_pointer + row, largest)
    tl.store(log_total_pointer + row, tl.log(total))


@triton.jit
def cross_entropy_backward(
    logits_pointer,
    labels_pointer,
    largest_pointer,
    log_total_pointer,
    word_share_pointer,
    label_share_pointer,
    gradient_pointer,
    row_stride,
    gradient_stride,
    num_words,
    scale,
    softcap,
    HAS_SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    word = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = word < num_words
    # The derivatives by log-sum-exp and by the label's logit: word_share * softmax - label_share * one-hot.
    word_share = tl.load(word_share_pointer + row)
    label_share = tl.load(label_share_pointer + row)
    largest = tl.load(largest_pointer + row)
    log_total = tl.load(log_total_pointer + row)
    label = tl.load(labels_pointer + row)
    raw = tl.load(logits_pointer + row * row_stride + word, mask=inside, other=0.0).to(tl.float32)
    x = _capped(raw, scale, softcap, HAS_SOFTCAP)
    gradient = tl.exp((x - largest) - log_total) * word_share - tl.where(word == label, label_share, 0.0)
    gradient = gradient * scale
    if HAS_SOFTCAP:
        gradient = gradient * (1.0 - (x / softcap) * (x / softcap))
    # A row that has no share stays 0 where its logits are not finite.
    unused = (word_share == 0.0) & (label_share == 0.0)
    tl.store(gradient_pointer + row * gradient_stride + word, tl.where(unused, 0.0, gradient), mask=inside)
