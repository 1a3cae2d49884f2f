"""How the forward kernel of ``st_attention`` walks over keys; every way gives the same sums.

* Runs of consecutive tokens of a stream, one loop per run. With look-ahead the products with the next block are issued
  before the softmax of the current one, so that matrix units and exponential units overlap. The last block of a run,
  the only one that may be partial, is peeled off the loop and masked.
* The list of key tiles that a frame sees, over all streams: one loop over its whole tiles, one over its partial ones.

With MAX_FREE, a bound of the scores promises that no weight leaves the range of float32, and the running maximum, with
the rescaling of the sums that follows it, is left out. Rows whose sums show that the promise was not kept
(:func:`in_range`) are computed again by another launch.

Source: FlashAttention-2 and -3 (arXiv 2307.08691, 2407.08608) for online softmax and its overlap.
"""

import triton
import triton.language as tl

from .streams import count_runs, load_rows, nth_run, seen_frames, select, start_of

# Running maximum before the first key. Finite, so that a row whose scores are all -inf never subtracts inf from inf;
# float32 scores of finite inputs below it would be overflow.
LOWEST = tl.constexpr(-1e38)
# Sums of weights with MAX_FREE: those of up to 2^26 keys lie inside if the bound holds, with room for values.
LEAST_SUM = tl.constexpr(2.0**-60)
LARGEST_SUM = tl.constexpr(2.0**76)


@triton.jit
def _load_tile(
    start, stride, descriptor, corner, first, length,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
):  # fmt: skip
    """Tokens first..first+ROWS-1 of a run, through pointers or the descriptor [B, tokens, heads, d] of the stream."""
    if descriptor is None:
        return load_rows(start, stride, first, length, ROWS, WIDTH, BLOCK_WIDTH)
    else:
        batch, token, head = corner
        return descriptor.load([batch, token + first, head, 0]).reshape(ROWS, BLOCK_WIDTH)


@triton.jit
def empty_sums(BLOCK_M: tl.constexpr, BLOCK_WIDTH: tl.constexpr, MAX_FREE: tl.constexpr):
    """Weighted sum of values, sum of weights, and what weights are relative to (in powers of 2), before any key."""
    acc, total = tl.zeros([BLOCK_M, BLOCK_WIDTH], tl.float32), tl.zeros([BLOCK_M], tl.float32)
    return acc, total, tl.full([BLOCK_M], 0.0 if MAX_FREE else LOWEST, tl.float32)


@triton.jit
def in_range(total):
    """Whether no weight of a row has left float32; not where its bound was wrong, it saw no key, or it holds NaN."""
    return (total >= LEAST_SUM) & (total <= LARGEST_SUM)


@triton.jit
def _softmax_step(scores, acc, total, top, scale, shift, MAX_FREE: tl.constexpr):
    """Weights of one block of scores, and the running sums on the scale of the new maximum."""
    if MAX_FREE:
        weights = tl.math.exp2(scores * scale + shift)
        return weights, acc, total + tl.sum(weights, 1), top
    else:
        top_next = tl.maximum(top, tl.max(scores, 1) * scale + shift)
        weights = tl.math.exp2(scores * scale - (top_next - shift)[:, None])
        shrink = tl.math.exp2(top - top_next)
        return weights, acc * shrink[:, None], total * shrink + tl.sum(weights, 1), top_next


@triton.jit
def _attend_run(
    acc, total, top, q, key, value, key_descriptor, value_descriptor, batch, head, frame, frames, scale, shift,
    MAX_FREE: tl.constexpr, LOOK_AHEAD: tl.constexpr, BLOCK_N: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add a run of keys, ``frames`` frames from ``frame`` on, to the running softmax of a tile of queries."""
    length = frames * key.tokens
    k_start, v_start = start_of(key, batch, head, frame), start_of(value, batch, head, frame)
    k_stride, v_stride = key.stride_token, value.stride_token
    corner = (batch, frame * key.tokens, head)
    last = (tl.cdiv(length, BLOCK_N) - 1) * BLOCK_N

    if LOOK_AHEAD:
        k = _load_tile(k_start, k_stride, key_descriptor, corner, 0, length, BLOCK_N, WIDTH, BLOCK_WIDTH)
        scores = tl.dot(q, k.T, input_precision=PRECISION)
        for n in tl.range(0, last, BLOCK_N):
            k = _load_tile(
                k_start, k_stride, key_descriptor, corner, n + BLOCK_N, length, BLOCK_N, WIDTH, BLOCK_WIDTH
            )  # fmt: skip
            ahead = tl.dot(q, k.T, input_precision=PRECISION)
            weights, acc, total, top = _softmax_step(scores, acc, total, top, scale, shift, MAX_FREE)
            v = _load_tile(v_start, v_stride, value_descriptor, corner, n, length, BLOCK_N, WIDTH, BLOCK_WIDTH)
            acc = tl.dot(weights.to(v.dtype), v, acc, input_precision=PRECISION)
            scores = ahead
    else:
        for n in tl.range(0, last, BLOCK_N):
            k = _load_tile(k_start, k_stride, key_descriptor, corner, n, length, BLOCK_N, WIDTH, BLOCK_WIDTH)
            scores = tl.dot(q, k.T, input_precision=PRECISION)
            weights, acc, total, top = _softmax_step(scores, acc, total, top, scale, shift, MAX_FREE)
            v = _load_tile(v_start, v_stride, value_descriptor, corner, n, length, BLOCK_N, WIDTH, BLOCK_WIDTH)
            acc = tl.dot(weights.to(v.dtype), v, acc, input_precision=PRECISION)
        k = _load_tile(k_start, k_stride, key_descriptor, corner, last, length, BLOCK_N, WIDTH, BLOCK_WIDTH)
        scores = tl.dot(q, k.T, input_precision=PRECISION)

    visible = tl.arange(0, BLOCK_N) < length - last
    scores = tl.where(visible[None, :], scores, -float("inf"))
    weights, acc, total, top = _softmax_step(scores, acc, total, top, scale, shift, MAX_FREE)
    v = _load_tile(v_start, v_stride, value_descriptor, corner, last, length, BLOCK_N, WIDTH, BLOCK_WIDTH)
    if value_descriptor is not None:
        v = tl.where(visible[:, None], v, 0.0)  # a descriptor also brings tokens of the next frame: NaN * 0
    acc = tl.dot(weights.to(v.dtype), v, acc, input_precision=PRECISION)
    return acc, total, top


@triton.jit
def attend_runs(
    acc, total, top, q, keys, values, descriptors, batch, head, frame, query_frames, reference, shifts, scale, window,
    ONE_RUN: tl.constexpr, MAX_FREE: tl.constexpr, LOOK_AHEAD: tl.constexpr, BLOCK_N: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add what a frame sees of every stream, run by run."""
    for s in tl.static_range(len(keys)):
        key_descriptor, value_descriptor = descriptors[s], descriptors[len(descriptors) // 2 + s]
        low, high = seen_frames(frame, query_frames, keys[s].frames, window)
        if ONE_RUN:
            acc, total, top = _attend_run(
                acc, total, top, q, keys[s], values[s], key_descriptor, value_descriptor, batch, head, low, high - low,
                scale, shifts[s], MAX_FREE, LOOK_AHEAD, BLOCK_N, WIDTH, BLOCK_WIDTH, PRECISION,
            )  # fmt: skip
        else:
            for run in tl.range(0, count_runs(keys[s], low, high, reference)):
                start, frames = nth_run(run, keys[s], low, high, reference)
                acc, total, top = _attend_run(
                    acc, total, top, q, keys[s], values[s], key_descriptor, value_descriptor, batch, head, start,
                    frames, scale, shifts[s], MAX_FREE, LOOK_AHEAD, BLOCK_N, WIDTH, BLOCK_WIDTH, PRECISION,
                )  # fmt: skip
    return acc, total, top


@triton.jit
def _attend_listed(
    acc, total, top, q, keys, values, entry, batch, head, shifts, scale,
    PARTIAL: tl.constexpr, MAX_FREE: tl.constexpr, BLOCK_N: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add the tile of keys that an entry (stream, frame, token, tokens) of a list names."""
    stream, frame, token = tl.load(entry), tl.load(entry + 1), tl.load(entry + 2)
    count = tl.load(entry + 3) if PARTIAL else BLOCK_N
    key, value, shift = keys[0], values[0], shifts[0]
    for s in tl.static_range(1, len(keys)):
        key, value = select(stream == s, keys[s], key), select(stream == s, values[s], value)
        shift = tl.where(stream == s, shifts[s], shift)
    k_start = start_of(key, batch, head, frame) + tl.cast(token, tl.int64) * key.stride_token
    v_start = start_of(value, batch, head, frame) + tl.cast(token, tl.int64) * value.stride_token
    k = load_rows(k_start, key.stride_token, 0, count, BLOCK_N, WIDTH, BLOCK_WIDTH)
    scores = tl.dot(q, k.T, input_precision=PRECISION)
    if PARTIAL:
        scores = tl.where((tl.arange(0, BLOCK_N) < count)[None, :], scores, -float("inf"))
    weights, acc, total, top = _softmax_step(scores, acc, total, top, scale, shift, MAX_FREE)
    v = load_rows(v_start, value.stride_token, 0, count, BLOCK_N, WIDTH, BLOCK_WIDTH)
    acc = tl.dot(weights.to(v.dtype), v, acc, input_precision=PRECISION)
    return acc, total, top


@triton.jit
def attend_list(
    acc, total, top, q, keys, values, entries, starts, sight, batch, head, shifts, scale,
    MAX_FREE: tl.constexpr, BLOCK_N: tl.constexpr, WIDTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Add the key tiles of list ``sight`` (see ``st_attention_lists``): its whole tiles, then its partial ones."""
    first, partial, end = tl.load(starts + 2 * sight), tl.load(starts + 2 * sight + 1), tl.load(starts + 2 * sight + 2)
    for index in tl.range(first, partial):
        acc, total, top = _attend_listed(
            acc, total, top, q, keys, values, entries + 4 * index, batch, head, shifts, scale,
            False, MAX_FREE, BLOCK_N, WIDTH, BLOCK_WIDTH, PRECISION,
        )  # fmt: skip
    for index in tl.range(partial, end):
        acc, total, top = _attend_listed(
            acc, total, top, q, keys, values, entries + 4 * index, batch, head, shifts, scale,
            True, MAX_FREE, BLOCK_N, WIDTH, BLOCK_WIDTH, PRECISION,
        )  # fmt: skip
    return acc, total, top
