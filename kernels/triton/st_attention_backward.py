"""Backward kernels of ``st_attention``: one owns tiles of queries, the other tiles of keys; no atomics anywhere.

With P the weights and D = rowsum(dO * O):
    dV = P^T dO,  dS = P * (dO V^T - D),  dQ = scale * dS K,  dK = scale * dS^T Q.
Both kernels recompute P from the saved log-sum-exp. Seven matrix products instead of the five of a single kernel, but
every gradient is summed by one program in one order, so that runs repeat bit by bit.

Source: FlashAttention-2 (arXiv 2307.08691), section 3.1.2.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from . import tuning
from .st_attention import LN2, LOG2E, Plan
from .streams import count_runs, describe, first_tiles, load_rows, nth_run, pick, seen_frames, start_of, store_rows


@triton.jit
def _load_lse(pointer, rows, mask):
    """In powers of 2; +inf for rows that see no key and for rows outside, whose weights are zero then."""
    lse = tl.load(pointer + rows, mask=mask, other=-float("inf")) * LOG2E
    return tl.where(lse == -float("inf"), float("inf"), lse)


@triton.jit
def _query_run(
    dq, q, do, lse, delta, key, value, batch, head, frame, frames, scale, shift,
    BLOCK_N: tl.constexpr, WIDTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    length = frames * key.tokens
    k_start, v_start = start_of(key, batch, head, frame), start_of(value, batch, head, frame)
    for n in tl.range(0, length, BLOCK_N):
        k = load_rows(k_start, key.stride_token, n, length, BLOCK_N, WIDTH, BLOCK_WIDTH)
        v = load_rows(v_start, value.stride_token, n, length, BLOCK_N, WIDTH, BLOCK_WIDTH)
        scores = tl.dot(q, k.T, input_precision=PRECISION)
        # weights are at most 1; the bound keeps those of the zeros past the end finite, which k = 0 then hides
        weights = tl.math.exp2(tl.minimum(scores * scale - (lse - shift)[:, None], 0.0))
        dp = tl.dot(do, v.T, input_precision=PRECISION)
        ds = weights * (dp - delta[:, None])
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)
    return dq


@triton.jit
def _backward_queries(
    queries, keys, values, outputs, grads, grad_queries, lse_ptr, delta_ptr, first_tile, reference, shifts, scale,
    window, heads, tokens,
    ONE_RUN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dQ of a tile of queries; also stores D for the other kernel."""
    tiles = first_tile[len(queries)]
    tile, batch_head = tl.program_id(0) % tiles, tl.program_id(0) // tiles
    batch, head = batch_head // heads, batch_head % heads
    query, first = pick(queries, first_tile, tile)
    output, _ = pick(outputs, first_tile, tile)
    grad, _ = pick(grads, first_tile, tile)
    grad_query, _ = pick(grad_queries, first_tile, tile)
    tiles_per_frame = tl.cdiv(query.tokens, BLOCK_M)
    frame = (tile - first) // tiles_per_frame
    row = (tile - first) % tiles_per_frame * BLOCK_M

    out_start, do_start = start_of(output, batch, head, frame), start_of(grad, batch, head, frame)
    o = load_rows(out_start, output.stride_token, row, query.tokens, BLOCK_M, WIDTH, BLOCK_WIDTH)
    do = load_rows(do_start, grad.stride_token, row, query.tokens, BLOCK_M, WIDTH, BLOCK_WIDTH)
    delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
    rows = row + tl.arange(0, BLOCK_M)
    saved_row = tl.cast(batch_head, tl.int64) * tokens + query.offset + frame * query.tokens
    tl.store(delta_ptr + saved_row + rows, delta, mask=rows < query.tokens)
    lse = _load_lse(lse_ptr + saved_row, rows, rows < query.tokens)
    q_start = start_of(query, batch, head, frame)
    q = load_rows(q_start, query.stride_token, row, query.tokens, BLOCK_M, WIDTH, BLOCK_WIDTH)

    dq = tl.zeros([BLOCK_M, BLOCK_WIDTH], tl.float32)
    for s in tl.static_range(len(keys)):
        low, high = seen_frames(frame, query.frames, keys[s].frames, window)
        if ONE_RUN:
            dq = _query_run(
                dq, q, do, lse, delta, keys[s], values[s], batch, head, low, high - low, scale, shifts[s],
                BLOCK_N, WIDTH, BLOCK_WIDTH, PRECISION,
            )  # fmt: skip
        else:
            for run in tl.range(0, count_runs(keys[s], low, high, reference)):
                start, frames = nth_run(run, keys[s], low, high, reference)
                dq = _query_run(
                    dq, q, do, lse, delta, keys[s], values[s], batch, head, start, frames, scale, shifts[s],
                    BLOCK_N, WIDTH, BLOCK_WIDTH, PRECISION,
                )  # fmt: skip
    dq_start = start_of(grad_query, batch, head, frame)
    store_rows(dq_start, grad_query.stride_token, dq * (scale * LN2), row, query.tokens, BLOCK_M, WIDTH, BLOCK_WIDTH)


@triton.jit
def _key_run(
    dk, dv, k, v, query, grad, saved, lse_ptr, delta_ptr, batch, head, frame, frames, scale, shift,
    BLOCK_M: tl.constexpr, WIDTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    length = frames * query.tokens
    q_start, do_start = start_of(query, batch, head, frame), start_of(grad, batch, head, frame)
    saved += query.offset + frame * query.tokens
    for m in tl.range(0, length, BLOCK_M):
        q = load_rows(q_start, query.stride_token, m, length, BLOCK_M, WIDTH, BLOCK_WIDTH)
        do = load_rows(do_start, grad.stride_token, m, length, BLOCK_M, WIDTH, BLOCK_WIDTH)
        rows = m + tl.arange(0, BLOCK_M)
        lse = _load_lse(lse_ptr + saved, rows, rows < length)
        delta = tl.load(delta_ptr + saved + rows, mask=rows < length, other=0.0)
        scores = tl.dot(k, q.T, input_precision=PRECISION)  # [BLOCK_N, BLOCK_M]
        weights = tl.math.exp2(scores * scale - (lse - shift)[None, :])
        dv = tl.dot(weights.to(do.dtype), do, dv, input_precision=PRECISION)
        dp = tl.dot(v, do.T, input_precision=PRECISION)
        ds = weights * (dp - delta[None, :])
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
    return dk, dv


@triton.jit
def _backward_keys(
    queries, keys, values, grads, grad_keys, grad_values, lse_ptr, delta_ptr, first_tile, reference, shifts, scale,
    window, heads, tokens,
    ONE_RUN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dK and dV of a tile of keys."""
    tiles = first_tile[len(keys)]
    tile, batch_head = tl.program_id(0) % tiles, tl.program_id(0) // tiles
    batch, head = batch_head // heads, batch_head % heads
    key, first = pick(keys, first_tile, tile)
    value, _ = pick(values, first_tile, tile)
    grad_key, _ = pick(grad_keys, first_tile, tile)
    grad_value, _ = pick(grad_values, first_tile, tile)
    shift = shifts[0]
    for s in tl.static_range(1, len(keys)):
        shift = tl.where(tile >= first_tile[s], shifts[s], shift)
    tiles_per_frame = tl.cdiv(key.tokens, BLOCK_N)
    frame = (tile - first) // tiles_per_frame
    row = (tile - first) % tiles_per_frame * BLOCK_N

    k_start, v_start = start_of(key, batch, head, frame), start_of(value, batch, head, frame)
    k = load_rows(k_start, key.stride_token, row, key.tokens, BLOCK_N, WIDTH, BLOCK_WIDTH)
    v = load_rows(v_start, value.stride_token, row, key.tokens, BLOCK_N, WIDTH, BLOCK_WIDTH)
    dk = tl.zeros([BLOCK_N, BLOCK_WIDTH], tl.float32)
    dv = tl.zeros([BLOCK_N, BLOCK_WIDTH], tl.float32)
    saved = tl.cast(batch_head, tl.int64) * tokens
    for s in tl.static_range(len(queries)):
        low, high = seen_frames(frame, key.frames, queries[s].frames, window)
        for index in tl.static_range(len(reference)):  # every frame sees a reference frame
            everywhere = (key.frames > 1) & (frame == reference[index])
            low, high = tl.where(everywhere, 0, low), tl.where(everywhere, queries[s].frames, high)
        if ONE_RUN:
            dk, dv = _key_run(
                dk, dv, k, v, queries[s], grads[s], saved, lse_ptr, delta_ptr, batch, head, low, high - low, scale,
                shift, BLOCK_M, WIDTH, BLOCK_WIDTH, PRECISION,
            )  # fmt: skip
        else:
            for run in tl.range(0, count_runs(queries[s], low, high, ())):
                start, frames = nth_run(run, queries[s], low, high, ())
                dk, dv = _key_run(
                    dk, dv, k, v, queries[s], grads[s], saved, lse_ptr, delta_ptr, batch, head, start, frames, scale,
                    shift, BLOCK_M, WIDTH, BLOCK_WIDTH, PRECISION,
                )  # fmt: skip
    dk_start, dv_start = start_of(grad_key, batch, head, frame), start_of(grad_value, batch, head, frame)
    store_rows(dk_start, grad_key.stride_token, dk * (scale * LN2), row, key.tokens, BLOCK_N, WIDTH, BLOCK_WIDTH)
    store_rows(dv_start, grad_value.stride_token, dv, row, key.tokens, BLOCK_N, WIDTH, BLOCK_WIDTH)


def backward(
    grads: Sequence[torch.Tensor], q: Sequence[torch.Tensor], k: Sequence[torch.Tensor], v: Sequence[torch.Tensor],
    outputs: Sequence[torch.Tensor], lse: torch.Tensor, scale: float, window: int, reference_frames: Sequence[int],
    weights: Sequence[float],
) -> list[torch.Tensor]:  # fmt: skip
    """Gradients of every q, then every k, then every v stream, contiguous; arguments as in the forward pass."""
    plan = Plan(q, k, scale, window, reference_frames, weights)
    with tuning.on_device(q[0].device):
        grad_q, grad_k, grad_v = (
            [torch.empty(s.shape, dtype=s.dtype, device=s.device) for s in streams] for streams in (q, k, v)
        )
        grads = [grad.contiguous() for grad in grads]
        delta = torch.empty_like(lse)
        queries, outs, grad_outs, grad_queries = describe(q, outputs, grads, grad_q, join=plan.dense)
        keys, values, grad_keys, grad_values = describe(k, v, grad_k, grad_v, join=plan.dense)
        one_run = not plan.reference and all(stream.joined for stream in keys)
        config = tuning.config("st_attention_backward_queries", q[0].dtype, plan.width)
        _launch(
            _backward_queries, config, config.tile[0], plan, queries,
            (queries, keys, values, outs, grad_outs, grad_queries, lse, delta), one_run,
        )  # fmt: skip
        one_run = all(stream.joined for stream in queries)
        config = tuning.config("st_attention_backward_keys", q[0].dtype, plan.width)
        _launch(
            _backward_keys, config, config.tile[1], plan, keys,
            (queries, keys, values, grad_outs, grad_keys, grad_values, lse, delta), one_run,
        )  # fmt: skip
    return [*grad_q, *grad_k, *grad_v]


def _launch(kernel, config: tuning.Config, block: int, plan: Plan, owned, arguments, one_run: bool) -> None:
    tiles = first_tiles(owned, block)
    block_m, block_n = config.tile
    kernel[(tiles[-1] * plan.batch * plan.heads,)](
        *arguments, tiles, plan.reference, plan.shifts, plan.scale, plan.window, plan.heads, plan.tokens,
        ONE_RUN=one_run, BLOCK_M=block_m, BLOCK_N=block_n, **plan.constants, **config.options,
    )  # fmt: skip
