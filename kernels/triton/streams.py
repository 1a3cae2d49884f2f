"""Token streams as the kernels see them: where a stream's tokens are, and which of them a frame sees."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl


class Stream(NamedTuple):
    """A stream [B, frames, tokens, heads, d] in place. Strides in elements; that of d is 1.

    ``joined``: 1 if frame follows frame without a gap, so that neighbouring frames are one run of tokens.
    ``offset``: tokens of the streams before it.
    """

    pointer: torch.Tensor
    stride_batch: int
    stride_frame: int
    stride_token: int
    stride_head: int
    frames: int
    tokens: int
    joined: int
    offset: int


def describe(*groups: Sequence[torch.Tensor], join: bool) -> list[tuple[Stream, ...]]:
    """Streams for a kernel. Streams at one place of the groups have one shape and are walked together.

    With ``join``, those whose frames follow each other in every group become streams of one frame.
    """
    described, offset = [[] for _ in groups], 0
    for place in zip(*groups, strict=True):
        _, frames, tokens, _, _ = place[0].shape
        joined = frames == 1 or all(tensor.stride(1) == tokens * tensor.stride(2) for tensor in place)
        shape = (1, frames * tokens) if join and joined else (frames, tokens)
        for group, tensor in zip(described, place, strict=True):
            group.append(Stream(tensor, *tensor.stride()[:4], *shape, int(joined), offset))
        offset += frames * tokens
    return [tuple(group) for group in described]


def first_tiles(streams: Sequence[Stream], block: int) -> tuple[int, ...]:
    """Index of the first tile of every stream, and the number of tiles; a tile never holds two frames."""
    firsts = [0]
    for stream in streams:
        firsts.append(firsts[-1] + stream.frames * triton.cdiv(stream.tokens, block))
    return tuple(firsts)


@triton.jit
def select(hit, one, other):
    """Stream ``one`` where ``hit``, field by field, so that code is not repeated per stream."""
    return Stream(
        tl.where(hit, one.pointer, other.pointer),
        tl.where(hit, one.stride_batch, other.stride_batch),
        tl.where(hit, one.stride_frame, other.stride_frame),
        tl.where(hit, one.stride_token, other.stride_token),
        tl.where(hit, one.stride_head, other.stride_head),
        tl.where(hit, one.frames, other.frames),
        tl.where(hit, one.tokens, other.tokens),
        tl.where(hit, one.joined, other.joined),
        tl.where(hit, one.offset, other.offset),
    )


@triton.jit
def pick(streams, first_tile, tile):
    """The stream of a tile, and the index of its first tile."""
    chosen, first = streams[0], 0
    for index in tl.static_range(1, len(streams)):
        hit = tile >= first_tile[index]
        first = tl.where(hit, first_tile[index], first)
        chosen = select(hit, streams[index], chosen)
    return chosen, first


@triton.jit
def start_of(stream, batch, head, frame):
    """Pointer to the first token of a frame; 64-bit, as a batch may hold more than 2^31 elements."""
    offset = tl.cast(batch, tl.int64) * stream.stride_batch + tl.cast(head, tl.int64) * stream.stride_head
    return stream.pointer + offset + tl.cast(frame, tl.int64) * stream.stride_frame


@triton.jit
def load_rows(start, stride, first, length, ROWS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr):
    """Tokens first..first+ROWS-1 of a run, [ROWS, BLOCK_WIDTH]; zeros from ``length`` on."""
    rows, columns = tl.arange(0, ROWS), tl.arange(0, BLOCK_WIDTH)
    tile = start + tl.cast(first, tl.int64) * stride + (tl.cast(rows, tl.int64)[:, None] * stride + columns[None, :])
    mask = (rows < length - first)[:, None]
    if WIDTH != BLOCK_WIDTH:
        mask = mask & (columns < WIDTH)[None, :]
    return tl.load(tile, mask=mask, other=0.0)


@triton.jit
def store_rows(
    start, stride, tile, first, length, ROWS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr
):  # fmt: skip
    """Counterpart of :func:`load_rows`, rounding to the type of the stream."""
    rows, columns = tl.arange(0, ROWS), tl.arange(0, BLOCK_WIDTH)
    place = start + tl.cast(first, tl.int64) * stride + (tl.cast(rows, tl.int64)[:, None] * stride + columns[None, :])
    mask = (rows < length - first)[:, None]
    if WIDTH != BLOCK_WIDTH:
        mask = mask & (columns < WIDTH)[None, :]
    tl.store(place, tile.to(start.dtype.element_ty), mask=mask)


@triton.jit
def seen_frames(frame, frames, other_frames, window):
    """[first, last) frames of another stream that a frame sees; tokens of a one-frame stream belong to all frames."""
    everything = (frames == 1) | (other_frames == 1)
    first = tl.where(everything, 0, tl.maximum(frame - window, 0))
    last = tl.where(everything, other_frames, tl.minimum(frame + window + 1, other_frames))
    return first, last


@triton.jit
def _is_extra(reference, stream, first, last):
    """Whether a reference frame is a run of its own: it exists in the stream and lies outside [first, last)."""
    return (reference < stream.frames) & ((reference < first) | (reference >= last))


@triton.jit
def count_runs(stream, first, last, reference):
    """Runs of consecutive tokens in the frames [first, last) and in the reference frames outside them."""
    runs = tl.where(stream.joined != 0, 1, last - first)
    for index in tl.static_range(len(reference)):
        runs += tl.where(_is_extra(reference[index], stream, first, last), 1, 0)
    return runs


@triton.jit
def nth_run(run, stream, first, last, reference):
    """First frame and number of frames of a run."""
    start = tl.where(stream.joined != 0, first, first + run)
    frames = tl.where(stream.joined != 0, last - first, 1)
    position = tl.where(stream.joined != 0, 1, last - first)
    for index in tl.static_range(len(reference)):
        extra = _is_extra(reference[index], stream, first, last)
        start = tl.where(extra & (run == position), reference[index], start)
        frames = tl.where(extra & (run == position), 1, frames)
        position += tl.where(extra, 1, 0)
    return start, frames
