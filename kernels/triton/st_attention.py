"""Forward kernel of ``st_attention``: online softmax over the tokens of several streams, read and written in place.

One program owns a tile of queries of one frame and one head. It walks over runs of keys: consecutive tokens of a stream
that it sees. Within a run the products with the next block of keys are issued before the softmax of the current one, so
that the matrix units and the exponential units overlap; the last block of a run, the only one that may be partial, is
peeled off the loop and masked. Frames outside the window cost nothing, and no mask is ever stored.

Source: FlashAttention-2 and -3 (arXiv 2307.08691, 2407.08608) for online softmax and its overlap.
"""

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from . import tuning
from .streams import (
    Stream,
    count_runs,
    describe,
    first_tiles,
    load_rows,
    nth_run,
    pick,
    seen_frames,
    start_of,
    store_rows,
)

MAX_KEY_STREAMS = 3
MAX_HEAD_DIM = 128

LN2 = tl.constexpr(0.6931471805599453)
LOG2E = tl.constexpr(1.4426950408889634)
# Running maximum before the first key. Finite, so that a row whose scores are all -inf never subtracts inf from inf;
# float32 scores of finite inputs below it would be overflow.
LOWEST = tl.constexpr(-1e38)


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
def _softmax_step(scores, acc, total, top, scale, shift):
    """Weights of one block of scores, and the running sums on the scale of the new maximum (in powers of 2)."""
    top_next = tl.maximum(top, tl.max(scores, 1) * scale + shift)
    weights = tl.math.exp2(scores * scale - (top_next - shift)[:, None])
    shrink = tl.math.exp2(top - top_next)
    return weights, acc * shrink[:, None], total * shrink + tl.sum(weights, 1), top_next


@triton.jit
def _attend_run(
    acc, total, top, q, key, value, key_descriptor, value_descriptor, batch, head, frame, frames, scale, shift,
    BLOCK_N: tl.constexpr, WIDTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add a run of keys, ``frames`` frames from ``frame`` on, to the running softmax of a tile of queries."""
    length = frames * key.tokens
    k_start, v_start = start_of(key, batch, head, frame), start_of(value, batch, head, frame)
    corner = (batch, frame * key.tokens, head)

    last = (tl.cdiv(length, BLOCK_N) - 1) * BLOCK_N
    k = _load_tile(k_start, key.stride_token, key_descriptor, corner, 0, length, BLOCK_N, WIDTH, BLOCK_WIDTH)
    scores = tl.dot(q, k.T, input_precision=PRECISION)
    for n in tl.range(0, last, BLOCK_N):
        k = _load_tile(
            k_start, key.stride_token, key_descriptor, corner, n + BLOCK_N, length, BLOCK_N, WIDTH, BLOCK_WIDTH
        )
        ahead = tl.dot(q, k.T, input_precision=PRECISION)
        weights, acc, total, top = _softmax_step(scores, acc, total, top, scale, shift)
        v = _load_tile(v_start, value.stride_token, value_descriptor, corner, n, length, BLOCK_N, WIDTH, BLOCK_WIDTH)
        acc = tl.dot(weights.to(v.dtype), v, acc, input_precision=PRECISION)
        scores = ahead

    visible = tl.arange(0, BLOCK_N) < length - last
    scores = tl.where(visible[None, :], scores, -float("inf"))
    weights, acc, total, top = _softmax_step(scores, acc, total, top, scale, shift)
    v = _load_tile(v_start, value.stride_token, value_descriptor, corner, last, length, BLOCK_N, WIDTH, BLOCK_WIDTH)
    if value_descriptor is not None:
        v = tl.where(visible[:, None], v, 0.0)  # a descriptor also brings tokens of the next frame: NaN * 0
    acc = tl.dot(weights.to(v.dtype), v, acc, input_precision=PRECISION)
    return acc, total, top


@triton.jit
def _forward(
    queries, keys, values, outputs, lse_ptr, first_tile, reference, shifts, scale, window, heads, tokens,
    key0, key1, key2, value0, value1, value2,  # descriptors or None; launchers do not take them inside tuples
    ONE_RUN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tiles = first_tile[len(queries)]
    tile, batch_head = tl.program_id(0) % tiles, tl.program_id(0) // tiles
    batch, head = batch_head // heads, batch_head % heads
    query, first = pick(queries, first_tile, tile)
    output, _ = pick(outputs, first_tile, tile)
    tiles_per_frame = tl.cdiv(query.tokens, BLOCK_M)
    frame = (tile - first) // tiles_per_frame
    row = (tile - first) % tiles_per_frame * BLOCK_M

    q_start = start_of(query, batch, head, frame)
    q = load_rows(q_start, query.stride_token, row, query.tokens, BLOCK_M, WIDTH, BLOCK_WIDTH)
    acc = tl.zeros([BLOCK_M, BLOCK_WIDTH], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    top = tl.full([BLOCK_M], LOWEST, tl.float32)
    for s in tl.static_range(len(keys)):
        key_descriptor, value_descriptor = (key0, key1, key2)[s], (value0, value1, value2)[s]
        low, high = seen_frames(frame, query.frames, keys[s].frames, window)
        if ONE_RUN:
            acc, total, top = _attend_run(
                acc, total, top, q, keys[s], values[s], key_descriptor, value_descriptor, batch, head, low, high - low,
                scale, shifts[s], BLOCK_N, WIDTH, BLOCK_WIDTH, PRECISION,
            )  # fmt: skip
        else:
            for run in tl.range(0, count_runs(keys[s], low, high, reference)):
                start, frames = nth_run(run, keys[s], low, high, reference)
                acc, total, top = _attend_run(
                    acc, total, top, q, keys[s], values[s], key_descriptor, value_descriptor, batch, head, start,
                    frames, scale, shifts[s], BLOCK_N, WIDTH, BLOCK_WIDTH, PRECISION,
                )  # fmt: skip

    seen = total != 0  # also true for NaN
    acc *= tl.where(seen, 1.0 / total, 0.0)[:, None]
    out_start = start_of(output, batch, head, frame)
    store_rows(out_start, output.stride_token, acc, row, query.tokens, BLOCK_M, WIDTH, BLOCK_WIDTH)
    rows = row + tl.arange(0, BLOCK_M)
    lse = tl.where(seen, (top + tl.math.log2(total)) * LN2, -float("inf"))
    lse_row = tl.cast(batch_head, tl.int64) * tokens + query.offset + frame * query.tokens
    tl.store(lse_ptr + lse_row + rows, lse, mask=rows < query.tokens)


class Plan:
    """The options of a call as the kernels take them; forward and backward share it.

    Frames matter only under a window. Without one, the frames of a stream are joined where its strides allow it, and
    most calls need a single run per stream.
    """

    def __init__(self, q, k, scale: float, window: int, reference_frames: Sequence[int], weights: Sequence[float]):
        self.batch, _, _, self.heads, self.width = q[0].shape
        if len(k) > MAX_KEY_STREAMS:
            raise ValueError(
                f"st_attention: the triton backend takes up to {MAX_KEY_STREAMS} key streams, got {len(k)}; "
                "join some of them, or use backend='sdpa'"
            )
        if self.width > MAX_HEAD_DIM:
            raise ValueError(
                f"st_attention: the triton backend takes heads of up to {MAX_HEAD_DIM} channels, got {self.width}; "
                "use backend='sdpa'"
            )
        total_frames = max(stream.shape[1] for stream in (*q, *k))
        self.dense = window < 0 or window >= total_frames - 1
        self.window = total_frames if self.dense else window
        self.reference = () if self.dense else tuple(sorted({int(frame) for frame in reference_frames}))
        self.tokens = sum(stream.shape[1] * stream.shape[2] for stream in q)
        self.scale = scale * LOG2E.value
        self.shifts = tuple(math.log2(weight) for weight in weights)
        self.constants = {
            "WIDTH": self.width,
            "BLOCK_WIDTH": max(16, triton.next_power_of_2(self.width)),
            "PRECISION": tuning.dot_precision(q[0].dtype),
        }


def forward(
    q: Sequence[torch.Tensor], k: Sequence[torch.Tensor], v: Sequence[torch.Tensor], scale: float, window: int,
    reference_frames: Sequence[int], weights: Sequence[float],
) -> list[torch.Tensor]:  # fmt: skip
    """Outputs, contiguous and shaped as q, then the log-sum-exp [B, heads, tokens of all q streams] in float32.

    Shapes:
        q, k, v: streams [B, F or 1, T > 0, heads, d]; ``weights`` > 0, one per key stream; ``window`` -1 sees all.
    """
    plan = Plan(q, k, scale, window, reference_frames, weights)
    with tuning.on_device(q[0].device):
        keys, values = describe(k, v, join=plan.dense)
        one_run = not plan.reference and all(key.joined for key in keys)
        config, descriptors = _loads(keys, values, one_run)
        block_m, block_n = config.tile
        outputs = [torch.empty(stream.shape, dtype=stream.dtype, device=stream.device) for stream in q]
        lse = torch.empty((plan.batch, plan.heads, plan.tokens), dtype=torch.float32, device=q[0].device)
        queries, outs = describe(q, outputs, join=plan.dense)
        tiles = first_tiles(queries, block_m)
        _forward[(tiles[-1] * plan.batch * plan.heads,)](
            queries, keys, values, outs, lse, tiles, plan.reference, plan.shifts, plan.scale, plan.window, plan.heads,
            plan.tokens, *descriptors,
            ONE_RUN=one_run, BLOCK_M=block_m, BLOCK_N=block_n, **plan.constants, **config.options,
        )  # fmt: skip
    return [*outputs, lse]


def _loads(
    keys: Sequence[Stream], values: Sequence[Stream], one_run: bool
) -> tuple[tuning.Config, list[TensorDescriptor | None]]:  # fmt: skip
    """Launch options, and how keys and values come in: all of them through descriptors, or all through pointers.

    Descriptors need streams without gaps between frames, and addresses and strides that are multiples of 16 bytes.
    """
    tensor = keys[0].pointer
    config = tuning.config("st_attention", tensor.dtype, tensor.shape[-1])
    none: list[TensorDescriptor | None] = [None] * MAX_KEY_STREAMS
    if one_run and not config.descriptors:
        return config, none * 2
    if one_run:
        found = [[_descriptor(stream, config.tile[1]) for stream in streams] for streams in (keys, values)]
        if None not in found[0] + found[1]:
            return config, [descriptor for part in found for descriptor in (part + none)[:MAX_KEY_STREAMS]]
    return tuning.config("st_attention_pointers", tensor.dtype, tensor.shape[-1]), none * 2


def _descriptor(stream: Stream, rows: int) -> TensorDescriptor | None:
    tensor = stream.pointer
    batch, frames, tokens, heads, width = tensor.shape
    shape = [batch, frames * tokens, heads, width]
    strides = [stream.stride_batch, stream.stride_token, stream.stride_head]
    # the stride of an axis of one element is never used, but is checked: any multiple of 16 bytes will do
    strides = [stride if size > 1 else 16 for size, stride in zip(shape, strides, strict=False)]
    if tensor.data_ptr() % 16 or any(stride <= 0 or stride * tensor.element_size() % 16 for stride in strides):
        return None
    return TensorDescriptor(tensor, shape, [*strides, 1], [1, rows, 1, max(16, triton.next_power_of_2(width))])
