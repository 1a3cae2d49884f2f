"""Forward kernel of ``st_attention``: softmax over the tokens of several streams, read and written in place.

One program owns a tile of queries of one frame and one head (or takes several tiles in turn, with a persistent grid),
and walks over the keys that it sees as ``st_attention_loops`` says. Frames outside the window cost nothing, and no mask
is ever stored.
"""

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from . import tuning
from .st_attention_lists import key_lists
from .st_attention_loops import attend_list, attend_runs, empty_sums, in_range
from .streams import Stream, describe, first_tiles, load_rows, pick, start_of, store_rows

MAX_KEY_STREAMS = 3
MAX_HEAD_DIM = 128

# Largest exponent less smallest exponent, in powers of 2, of weights that are summed without a running maximum: float32
# and bfloat16 reach from 2^-126 to 2^127, and sums and values need room beside the weights. float16 reaches from 2^-14
# to 2^15, which holds no bound of use.
MAX_FREE_SPAN = 100.0

LN2 = tl.constexpr(0.6931471805599453)
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _attend(
    call, query, output, lse_row, batch, head, frame, row,
    ONE_RUN: tl.constexpr, MAX_FREE: tl.constexpr, LOOK_AHEAD: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, WIDTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Outputs and log-sum-exps of a tile of queries; NaN where the weights of a row may have left their range."""
    keys, values, descriptors, entries, starts, reference, shifts, scale, offset, window, frames = call
    q_start = start_of(query, batch, head, frame)
    q = load_rows(q_start, query.stride_token, row, query.tokens, BLOCK_M, WIDTH, BLOCK_WIDTH)
    acc, total, top = empty_sums(BLOCK_M, BLOCK_WIDTH, MAX_FREE)
    if entries is None:
        acc, total, top = attend_runs(
            acc, total, top, q, keys, values, descriptors, batch, head, frame, query.frames, reference, shifts, scale,
            window, ONE_RUN, MAX_FREE, LOOK_AHEAD, BLOCK_N, WIDTH, BLOCK_WIDTH, PRECISION,
        )  # fmt: skip
    else:
        sight = tl.where(query.frames == 1, frames, frame)
        acc, total, top = attend_list(
            acc, total, top, q, keys, values, entries, starts, sight, batch, head, shifts, scale,
            MAX_FREE, BLOCK_N, WIDTH, BLOCK_WIDTH, PRECISION,
        )  # fmt: skip

    seen = total != 0  # also true for NaN
    acc *= tl.where(seen, 1.0 / total, 0.0)[:, None]
    out_start = start_of(output, batch, head, frame)
    store_rows(out_start, output.stride_token, acc, row, query.tokens, BLOCK_M, WIDTH, BLOCK_WIDTH)
    lse = tl.where(seen, (top + tl.math.log2(total) + offset) * LN2, -float("inf"))
    if MAX_FREE:
        lse = tl.where(in_range(total), lse, float("nan"))
    rows = row + tl.arange(0, BLOCK_M)
    tl.store(lse_row + rows, lse, mask=rows < query.tokens)


@triton.jit
def _attend_tile(
    work, queries, outputs, lse_ptr, first_tile, tokens, heads, call,
    REPAIR: tl.constexpr, ONE_RUN: tl.constexpr, MAX_FREE: tl.constexpr, LOOK_AHEAD: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    tiles = first_tile[len(queries)]
    tile, batch_head = work % tiles, work // tiles
    batch, head = batch_head // heads, batch_head % heads
    query, first = pick(queries, first_tile, tile)
    output, _ = pick(outputs, first_tile, tile)
    tiles_per_frame = tl.cdiv(query.tokens, BLOCK_M)
    frame = (tile - first) // tiles_per_frame
    row = (tile - first) % tiles_per_frame * BLOCK_M
    lse_row = lse_ptr + tl.cast(batch_head, tl.int64) * tokens + query.offset + frame * query.tokens
    if REPAIR:
        rows = row + tl.arange(0, BLOCK_M)
        lse = tl.load(lse_row + rows, mask=rows < query.tokens, other=0.0)
        if tl.max((lse != lse).to(tl.int32), 0) != 0:
            _attend(
                call, query, output, lse_row, batch, head, frame, row,
                ONE_RUN, MAX_FREE, LOOK_AHEAD, BLOCK_M, BLOCK_N, WIDTH, BLOCK_WIDTH, PRECISION,
            )  # fmt: skip
    else:
        _attend(
            call, query, output, lse_row, batch, head, frame, row,
            ONE_RUN, MAX_FREE, LOOK_AHEAD, BLOCK_M, BLOCK_N, WIDTH, BLOCK_WIDTH, PRECISION,
        )  # fmt: skip


@triton.jit
def _forward(
    queries, keys, values, outputs, lse_ptr, first_tile, reference, shifts, scale, offset, window, heads, tokens,
    frames, works, entries, starts,
    key0, key1, key2, value0, value1, value2,  # descriptors or None; launchers do not take them inside tuples
    PERSISTENT: tl.constexpr, REPAIR: tl.constexpr, ONE_RUN: tl.constexpr, MAX_FREE: tl.constexpr,
    LOOK_AHEAD: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    descriptors = (key0, key1, key2, value0, value1, value2)
    call = (keys, values, descriptors, entries, starts, reference, shifts, scale, offset, window, frames)
    if PERSISTENT:
        for work in tl.range(tl.program_id(0), works, tl.num_programs(0)):
            _attend_tile(
                work, queries, outputs, lse_ptr, first_tile, tokens, heads, call,
                REPAIR, ONE_RUN, MAX_FREE, LOOK_AHEAD, BLOCK_M, BLOCK_N, WIDTH, BLOCK_WIDTH, PRECISION,
            )  # fmt: skip
    else:
        _attend_tile(
            tl.program_id(0), queries, outputs, lse_ptr, first_tile, tokens, heads, call,
            REPAIR, ONE_RUN, MAX_FREE, LOOK_AHEAD, BLOCK_M, BLOCK_N, WIDTH, BLOCK_WIDTH, PRECISION,
        )  # fmt: skip


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
        self.frames = total_frames
        self.tokens = sum(stream.shape[1] * stream.shape[2] for stream in q)
        self.scale = scale * LOG2E.value
        self.shifts = tuple(math.log2(weight) for weight in weights)
        self.constants = {
            "WIDTH": self.width,
            "BLOCK_WIDTH": max(16, triton.next_power_of_2(self.width)),
            "PRECISION": tuning.dot_precision(q[0].dtype),
        }

    def max_free_offset(self, dtype: torch.dtype, score_bound: float) -> float | None:
        """The middle of all exponents that scores within the bound can have; None if their span is too large."""
        span = 2 * score_bound * LOG2E.value + max(self.shifts) - min(self.shifts)
        return None if dtype == torch.float16 or not span < MAX_FREE_SPAN else (max(self.shifts) + min(self.shifts)) / 2


def forward(
    q: Sequence[torch.Tensor], k: Sequence[torch.Tensor], v: Sequence[torch.Tensor], scale: float, window: int,
    reference_frames: Sequence[int], weights: Sequence[float], score_bound: float = math.inf,
) -> list[torch.Tensor]:  # fmt: skip
    """Outputs, contiguous and shaped as q, then the log-sum-exp [B, heads, tokens of all q streams] in float32.

    Shapes:
        q, k, v: streams [B, F or 1, T > 0, heads, d]; ``weights`` > 0, one per key stream; ``window`` -1 sees all.
    Args:
        score_bound: of |scale <q, k>|; inf for unknown.
    """
    plan = Plan(q, k, scale, window, reference_frames, weights)
    with tuning.on_device(q[0].device):
        keys, values = describe(k, v, join=plan.dense)
        one_run = not plan.reference and all(key.joined for key in keys)
        config, descriptors = _loads(keys, values, one_run)
        outputs = [torch.empty(stream.shape, dtype=stream.dtype, device=stream.device) for stream in q]
        lse = torch.empty((plan.batch, plan.heads, plan.tokens), dtype=torch.float32, device=q[0].device)
        queries, outs = describe(q, outputs, join=plan.dense)
        streams = queries, keys, values, outs, lse
        offset = plan.max_free_offset(q[0].dtype, score_bound) if config.max_free else None
        _launch(config, plan, streams, descriptors, one_run, offset)
        if offset is not None:  # the rows that the bound was wrong for
            config = tuning.config("st_attention_repair", q[0].dtype, plan.width)
            _launch(config, plan, streams, [None] * 2 * MAX_KEY_STREAMS, one_run, None, repair=True)
    return [*outputs, lse]


def _launch(
    config: tuning.Config, plan: Plan, streams, descriptors: Sequence[TensorDescriptor | None], one_run: bool,
    offset: float | None, repair: bool = False,
) -> None:  # fmt: skip
    """``offset``: without a running maximum, the exponent that weights are relative to; ``repair``: only NaN tiles."""
    queries, keys, _, _, lse = streams
    block_m, block_n = config.tile
    tiles = first_tiles(queries, block_m)
    works = tiles[-1] * plan.batch * plan.heads
    programs = min(works, config.programs * tuning.multiprocessors(lse.device)) if config.programs else works
    entries, starts = None, None
    if config.block_lists:
        entries, starts = key_lists(keys, plan.frames, plan.window, plan.reference, block_n, lse.device)
    _forward[(programs,)](
        *streams, tiles, plan.reference, tuple(shift - (offset or 0.0) for shift in plan.shifts), plan.scale,
        offset or 0.0, plan.window, plan.heads, plan.tokens, plan.frames, works, entries, starts, *descriptors,
        PERSISTENT=config.programs > 0, REPAIR=repair, ONE_RUN=one_run, MAX_FREE=offset is not None,
        LOOK_AHEAD=config.look_ahead, BLOCK_M=block_m, BLOCK_N=block_n, **plan.constants, **config.options,
    )  # fmt: skip


def _loads(
    keys: Sequence[Stream], values: Sequence[Stream], one_run: bool
) -> tuple[tuning.Config, list[TensorDescriptor | None]]:  # fmt: skip
    """Launch options, and how keys and values come in: all of them through descriptors, or all through pointers.

    Descriptors need streams without gaps between frames, and addresses and strides that are multiples of 16 bytes.
    """
    tensor = keys[0].pointer
    config = tuning.config("st_attention", tensor.dtype, tensor.shape[-1])
    none: list[TensorDescriptor | None] = [None] * MAX_KEY_STREAMS
    if config.block_lists or (one_run and not config.descriptors):
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
