"""RoPE (arXiv 2104.09864) in the layout of Llama: dimension i is turned together with dimension i + half.

One program turns all heads of a token, queries and keys, by one row of the fp32 tables. The inverse turn is the same
with the opposite sign of the sine; it may overwrite its input, since an element is read and written by one program.
"""

import triton
import triton.language as tl


@triton.jit
def _turn(
    x_pointer,
    y_pointer,
    x_head_stride,
    y_head_stride,
    num_heads,
    head_dim,
    half,
    cosine,
    sine,
    COPY_REST: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    REST: tl.constexpr,
):
    head = tl.arange(0, HEADS)[:, None]
    dimension = tl.arange(0, HALF)[None, :]
    inside = (head < num_heads) & (dimension < half)
    low = tl.load(x_pointer + head * x_head_stride + dimension, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(x_pointer + head * x_head_stride + half + dimension, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_pointer + head * y_head_stride + dimension, low * cosine - high * sine, mask=inside)
    tl.store(y_pointer + head * y_head_stride + half + dimension, high * cosine + low * sine, mask=inside)
    if COPY_REST:
        rest = 2 * half + tl.arange(0, REST)[None, :]
        left = (head < num_heads) & (rest < head_dim)
        kept = tl.load(x_pointer + head * x_head_stride + rest, mask=left, other=0.0)
        tl.store(y_pointer + head * y_head_stride + rest, kept, mask=left)


@triton.jit
def rope_turn(
    query_pointer,
    key_pointer,
    query_out_pointer,
    key_out_pointer,
    cos_pointer,
    sin_pointer,
    positions_pointer,
    query_token_stride,
    query_head_stride,
    key_token_stride,
    key_head_stride,
    query_out_token_stride,
    query_out_head_stride,
    key_out_token_stride,
    key_out_head_stride,
    table_stride,
    num_positions,
    offset,
    num_query_heads,
    num_key_heads,
    head_dim,
    half,
    HAS_POSITIONS: tl.constexpr,
    INVERSE: tl.constexpr,
    COPY_REST: tl.constexpr,
    QUERY_HEADS: tl.constexpr,
    KEY_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    REST: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    position = token
    if HAS_POSITIONS:
        position = tl.load(positions_pointer + token).to(tl.int64)
    position += offset
    dimension = tl.arange(0, HALF)[None, :]
    known = (dimension < half) & (position >= 0) & (position < num_positions)
    # A position that the tables don't have gives NaN instead of what lies behind them.
    row = position * table_stride + dimension
    cosine = tl.load(cos_pointer + row, mask=known, other=float("nan")).to(tl.float32)
    sine = tl.load(sin_pointer + row, mask=known, other=float("nan")).to(tl.float32)
    if INVERSE:
        sine = -sine
    _turn(
        query_pointer + token * query_token_stride,
        query_out_pointer + token * query_out_token_stride,
        query_head_stride,
        query_out_head_stride,
        num_query_heads,
        head_dim,
        half,
        cosine,
        sine,
        COPY_REST,
        QUERY_HEADS,
        HALF,
        REST,
    )
    _turn(
        key_pointer + token * key_token_stride,
        key_out_pointer + token * key_out_token_stride,
        key_head_stride,
        key_out_head_stride,
        num_key_heads,
        head_dim,
        half,
        cosine,
        sine,
        COPY_REST,
        KEY_HEADS,
        HALF,
        REST,
    )
