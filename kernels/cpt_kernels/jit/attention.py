"""Causal attention of packed documents (flash attention, arXiv 2205.14135 and 2307.08691), forward and backward.

Which keys a query sees is said by two arrays: the first key of each query and the end of the queries of each key, both
rising, so that a program skips the blocks outside. Scores are powers of two (the scale holds log2 e). The gradient of
keys and values goes through the transposed scores k q^T rather than transposing a product, which Triton has miscompiled
on Hopper (flash-linear-attention 640); one program adds up all query heads of a key head, so there are no atomics.
"""

import triton
import triton.language as tl

LOWEST: tl.constexpr = tl.constexpr(-1.0e38)


@triton.jit
def _tile(pointer, row, row_stride, rows_inside, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    dimension = tl.arange(0, BLOCK_D)
    inside = rows_inside[:, None] & (dimension < DIM)[None, :]
    return tl.load(pointer + row.to(tl.int64)[:, None] * row_stride + dimension[None, :], mask=inside, other=0.0)


@triton.jit
def _write(pointer, row, row_stride, rows_inside, value, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    dimension = tl.arange(0, BLOCK_D)
    inside = rows_inside[:, None] & (dimension < DIM)[None, :]
    tl.store(pointer + row.to(tl.int64)[:, None] * row_stride + dimension[None, :], value, mask=inside)


@triton.jit
def attention_forward(
    query_pointer,
    key_pointer,
    value_pointer,
    out_pointer,
    lse_pointer,
    first_key_pointer,
    query_head_stride,
    query_stride,
    key_head_stride,
    key_stride,
    value_head_stride,
    value_stride,
    out_head_stride,
    out_stride,
    num_queries,
    num_keys,
    keys_before,
    scale,
    GROUPS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    block = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    keys = key_pointer + head // GROUPS * key_head_stride
    values = value_pointer + head // GROUPS * value_head_stride
    query = block * BLOCK_M + tl.arange(0, BLOCK_M)
    used = query < num_queries
    q = _tile(query_pointer + head * query_head_stride, query, query_stride, used, DIM, BLOCK_D)
    first_key = tl.load(first_key_pointer + query, mask=used, other=0)
    start = tl.load(first_key_pointer + block * BLOCK_M) // BLOCK_N * BLOCK_N
    stop = tl.minimum(block * BLOCK_M + BLOCK_M + keys_before, num_keys)
    largest = tl.full([BLOCK_M], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    result = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for begin in range(start, stop, BLOCK_N):
        key = begin + tl.arange(0, BLOCK_N)
        there = key < num_keys
        k = _tile(keys, key, key_stride, there, DIM, BLOCK_D)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        seen = (key[None, :] <= query[:, None] + keys_before) & (key[None, :] >= first_key[:, None]) & there[None, :]
        scores = tl.where(seen, scores, float("-inf"))
        new = tl.maximum(largest, tl.max(scores, 1))
        rescale = tl.exp2(largest - new)
        weights = tl.exp2(scores - new[:, None])
        total = total * rescale + tl.sum(weights, 1)
        v = _tile(values, key, value_stride, there, DIM, BLOCK_D)
        result = result * rescale[:, None] + tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
        largest = new
    # A row behind the last query has seen nothing; it is not written.
    total = tl.where(used, total, 1.0)
    _write(out_pointer + head * out_head_stride, query, out_stride, used, result / total[:, None], DIM, BLOCK_D)
    tl.store(lse_pointer + head * num_queries + query, largest + tl.log2(total), mask=used)


@triton.jit
def attention_backward_query(
    query_pointer,
    key_pointer,
    value_pointer,
    out_pointer,
    grad_out_pointer,
    lse_pointer,
    delta_pointer,
    first_key_pointer,
    grad_query_pointer,
    query_head_stride,
    query_stride,
    key_head_stride,
    key_stride,
    value_head_stride,
    value_stride,
    out_head_stride,
    out_stride,
    grad_out_head_stride,
    grad_out_stride,
    grad_query_head_stride,
    grad_query_stride,
    num_queries,
    num_keys,
    keys_before,
    scale,
    plain_scale,
    GROUPS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    block = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    keys = key_pointer + head // GROUPS * key_head_stride
    values = value_pointer + head // GROUPS * value_head_stride
    query = block * BLOCK_M + tl.arange(0, BLOCK_M)
    used = query < num_queries
    q = _tile(query_pointer + head * query_head_stride, query, query_stride, used, DIM, BLOCK_D)
    grad_out = _tile(grad_out_pointer + head * grad_out_head_stride, query, grad_out_stride, used, DIM, BLOCK_D)
    out = _tile(out_pointer + head * out_head_stride, query, out_stride, used, DIM, BLOCK_D)
    delta = tl.sum(out.to(tl.float32) * grad_out.to(tl.float32), 1)
    tl.store(delta_pointer + head * num_queries + query, delta, mask=used)
    lse = tl.load(lse_pointer + head * num_queries + query, mask=used, other=0.0)
    first_key = tl.load(first_key_pointer + query, mask=used, other=0)
    start = tl.load(first_key_pointer + block * BLOCK_M) // BLOCK_N * BLOCK_N
    stop = tl.minimum(block * BLOCK_M + BLOCK_M + keys_before, num_keys)
    grad_query = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for begin in range(start, stop, BLOCK_N):
        key = begin + tl.arange(0, BLOCK_N)
        there = key < num_keys
        k = _tile(keys, key, key_stride, there, DIM, BLOCK_D)
        v = _tile(values, key, value_stride, there, DIM, BLOCK_D)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        seen = (key[None, :] <= query[:, None] + keys_before) & (key[None, :] >= first_key[:, None])
        seen = seen & there[None, :] & used[:, None]
        weights = tl.where(seen, tl.exp2(scores - lse[:, None]), 0.0)
        grad_weights = tl.dot(grad_out, tl.trans(v), input_precision=PRECISION)
        grad_scores = weights * (grad_weights - delta[:, None])
        grad_query += tl.dot(grad_scores.to(k.dtype), k, input_precision=PRECISION)
    _write(
        grad_query_pointer + head * grad_query_head_stride,
        query,
        grad_query_stride,
        used,
        grad_query * plain_scale,
        DIM,
        BLOCK_D,
    )


@triton.jit
def attention_backward_key(
    query_pointer,
    key_pointer,
    value_pointer,
    grad_out_pointer,
    lse_pointer,
    delta_pointer,
    last_query_pointer,
    grad_key_pointer,
    grad_value_pointer,
    query_head_stride,
    query_stride,
    key_head_stride,
    key_stride,
    value_head_stride,
    value_stride,
    grad_out_head_stride,
    grad_out_stride,
    grad_key_head_stride,
    grad_key_stride,
    grad_value_head_stride,
    grad_value_stride,
    num_queries,
    num_keys,
    keys_before,
    scale,
    plain_scale,
    GROUPS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    block = tl.program_id(0)
    key_head = tl.program_id(1).to(tl.int64)
    key = block * BLOCK_N + tl.arange(0, BLOCK_N)
    there = key < num_keys
    k = _tile(key_pointer + key_head * key_head_stride, key, key_stride, there, DIM, BLOCK_D)
    v = _tile(value_pointer + key_head * value_head_stride, key, value_stride, there, DIM, BLOCK_D)
    last_query = tl.load(last_query_pointer + key, mask=there, other=0)
    start = tl.maximum(block * BLOCK_N - keys_before, 0) // BLOCK_M * BLOCK_M
    stop = tl.load(last_query_pointer + tl.minimum(block * BLOCK_N + BLOCK_N, num_keys) - 1)
    grad_key = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    grad_value = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for group in range(0, GROUPS):
        head = key_head * GROUPS + group
        for begin in range(start, stop, BLOCK_M):
            query = begin + tl.arange(0, BLOCK_M)
            used = query < num_queries
            q = _tile(query_pointer + head * query_head_stride, query, query_stride, used, DIM, BLOCK_D)
            grad_out = _tile(grad_out_pointer + head * grad_out_head_stride, query, grad_out_stride, used, DIM, BLOCK_D)
            lse = tl.load(lse_pointer + head * num_queries + query, mask=used, other=0.0)
            delta = tl.load(delta_pointer + head * num_queries + query, mask=used, other=0.0)
            scores = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale
            seen = (key[:, None] <= query[None, :] + keys_before) & (query[None, :] < last_query[:, None])
            seen = seen & there[:, None] & used[None, :]
            weights = tl.where(seen, tl.exp2(scores - lse[None, :]), 0.0)
            grad_value += tl.dot(weights.to(grad_out.dtype), grad_out, input_precision=PRECISION)
            grad_weights = tl.dot(v, tl.trans(grad_out), input_precision=PRECISION)
            grad_scores = weights * (grad_weights - delta[None, :])
            grad_key += tl.dot(grad_scores.to(q.dtype), q, input_precision=PRECISION)
    grad_keys = grad_key_pointer + key_head * grad_key_head_stride
    grad_values = grad_value_pointer + key_head * grad_value_head_stride
    _write(grad_keys, key, grad_key_stride, there, grad_key * plain_scale, DIM, BLOCK_D)
    _write(grad_values, key, grad_value_stride, there, grad_value, DIM, BLOCK_D)
