"""Kernels of ``qk_norm``: every head of every stream of a layer normalised in one launch, backward included.

A program owns a block of (token, head) rows of one stream; streams differ in length, strides and weight. Rows are
independent, so the only sum over rows is that of the weights' gradients: every program writes its part to a buffer of
its own, and those are added up in a fixed order.

Source: RMSNorm (arXiv 1910.07467).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from . import tuning


class Rows(NamedTuple):
    """The (outer, token, head) rows of a stream; strides in elements, that of the channels is 1."""

    pointer: torch.Tensor
    stride_outer: int
    stride_token: int
    stride_head: int
    tokens: int
    heads: int
    rows: int


def describe(stream: torch.Tensor) -> Rows:
    """[..., heads, d] as three axes of rows; a stream whose axes need more strides than that is copied."""
    stream = stream if stream.stride(-1) == 1 else stream.contiguous()
    while stream.dim() < 4:
        stream = stream.unsqueeze(0)
    stream = stream.flatten(1, -3)
    outer, tokens, heads, _ = stream.shape
    return Rows(stream, *stream.stride()[:3], tokens, heads, outer * tokens * heads)


@triton.jit
def _places(stream, first, BLOCK_ROWS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr):
    """Addresses and mask [BLOCK_ROWS, BLOCK_WIDTH] of the rows from ``first`` on."""
    rows, columns = first + tl.arange(0, BLOCK_ROWS), tl.arange(0, BLOCK_WIDTH)
    head = rows % stream.heads
    token = rows // stream.heads % stream.tokens
    outer = rows // stream.heads // stream.tokens
    start = outer.to(tl.int64) * stream.stride_outer + token.to(tl.int64) * stream.stride_token
    start += head.to(tl.int64) * stream.stride_head
    mask = (rows < stream.rows)[:, None] & (columns < WIDTH)[None, :]
    return stream.pointer + start[:, None] + columns[None, :], mask


@triton.jit
def _forward(
    streams, weights, outputs, first_block, eps,
    BLOCK_ROWS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    columns = tl.arange(0, BLOCK_WIDTH)
    for s in tl.static_range(len(streams)):
        if (block >= first_block[s]) & (block < first_block[s + 1]):
            row = (block - first_block[s]) * BLOCK_ROWS
            place, mask = _places(streams[s], row, BLOCK_ROWS, WIDTH, BLOCK_WIDTH)
            x = tl.load(place, mask=mask, other=0.0).to(tl.float32)
            weight = tl.load(weights[s] + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
            scale = 1.0 / tl.sqrt(tl.sum(x * x, 1) / WIDTH + eps)
            out_place, _ = _places(outputs[s], row, BLOCK_ROWS, WIDTH, BLOCK_WIDTH)
            tl.store(out_place, (x * scale[:, None] * weight).to(outputs[s].pointer.dtype.element_ty), mask=mask)


@triton.jit
def _backward(
    streams, weights, grads, grad_streams, parts_ptr, first_block, eps,
    BLOCK_ROWS: tl.constexpr, BLOCKS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
):  # fmt: skip
    """dx = scale * (w dy - n * mean(w dy n)) with n = x * scale, and this program's part of dw = sum dy n."""
    program = tl.program_id(0)
    columns = tl.arange(0, BLOCK_WIDTH)
    for s in tl.static_range(len(streams)):
        if (program >= first_block[s]) & (program < first_block[s + 1]):
            weight = tl.load(weights[s] + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
            part = tl.zeros([BLOCK_WIDTH], tl.float32)
            first = (program - first_block[s]) * BLOCKS * BLOCK_ROWS
            for row in tl.range(first, min(first + BLOCKS * BLOCK_ROWS, streams[s].rows), BLOCK_ROWS):
                place, mask = _places(streams[s], row, BLOCK_ROWS, WIDTH, BLOCK_WIDTH)
                x = tl.load(place, mask=mask, other=0.0).to(tl.float32)
                grad_place, _ = _places(grads[s], row, BLOCK_ROWS, WIDTH, BLOCK_WIDTH)
                grad = tl.load(grad_place, mask=mask, other=0.0).to(tl.float32)
                scale = (1.0 / tl.sqrt(tl.sum(x * x, 1) / WIDTH + eps))[:, None]
                normed = x * scale
                part += tl.sum(grad * normed, 0)
                grad *= weight
                grad = scale * (grad - normed * (tl.sum(grad * normed, 1) / WIDTH)[:, None])
                out_place, _ = _places(grad_streams[s], row, BLOCK_ROWS, WIDTH, BLOCK_WIDTH)
                tl.store(out_place, grad.to(grad_streams[s].pointer.dtype.element_ty), mask=mask)
            tl.store(parts_ptr + program * BLOCK_WIDTH + columns, part)


def forward(streams: Sequence[torch.Tensor], weights: Sequence[torch.Tensor], eps: float) -> list[torch.Tensor]:
    """Contiguous outputs, shaped and typed as the streams."""
    outputs = [torch.empty(s.shape, dtype=s.dtype, device=s.device) for s in streams]
    with tuning.on_device(streams[0].device):
        config = tuning.config("qk_norm", streams[0].dtype)
        rows = tuple(map(describe, streams))
        blocks = _first_blocks(rows, config.tile[0])
        _forward[(blocks[-1],)](
            rows, tuple(weights), tuple(map(describe, outputs)), blocks, eps,
            BLOCK_ROWS=config.tile[0], **_widths(streams), **config.options,
        )  # fmt: skip
    return outputs


def backward(
    grads: Sequence[torch.Tensor], streams: Sequence[torch.Tensor], weights: Sequence[torch.Tensor], eps: float
) -> list[torch.Tensor]:
    """Gradients of every stream, then of every weight, contiguous."""
    grad_streams = [torch.empty(s.shape, dtype=s.dtype, device=s.device) for s in streams]
    with tuning.on_device(streams[0].device):
        config = tuning.config("qk_norm_backward", streams[0].dtype)
        block_rows, blocks_per_program = config.tile
        rows = tuple(map(describe, streams))
        firsts = _first_blocks(rows, block_rows * blocks_per_program)
        widths = _widths(streams)
        parts = torch.empty((firsts[-1], widths["BLOCK_WIDTH"]), dtype=torch.float32, device=streams[0].device)
        _backward[(firsts[-1],)](
            rows, tuple(weights), tuple(map(describe, grads)), tuple(map(describe, grad_streams)), parts, firsts, eps,
            BLOCK_ROWS=block_rows, BLOCKS=blocks_per_program, **widths, **config.options,
        )  # fmt: skip
        spans = zip(firsts[:-1], firsts[1:], weights, strict=True)
        grad_weights = [parts[a:b, : widths["WIDTH"]].sum(0).to(w.dtype) for a, b, w in spans]
    return [*grad_streams, *grad_weights]


def _first_blocks(rows: Sequence[Rows], block: int) -> tuple[int, ...]:
    firsts = [0]
    for stream in rows:
        firsts.append(firsts[-1] + triton.cdiv(stream.rows, block))
    return tuple(firsts)


def _widths(streams: Sequence[torch.Tensor]) -> dict[str, int]:
    width = streams[0].shape[-1]
    return {"WIDTH": width, "BLOCK_WIDTH": triton.next_power_of_2(width)}
