"""Kernels of ``softargmax_flow``: a matrix product of features whose epilogue is a softmax over positions.

A program owns a block of queries and walks over blocks of keys; a block of scores lives in registers only. The values
of this attention are the positions of the keys, so the running sums are a few numbers per query.

Backward, with P the probabilities and E the expected displacement:
    dS_ij = P_ij (g_i . (p_j - p_i - E_i)) / temperature,  dQ = dS K,  dK = dS^T Q.
Each gradient has its own kernel, recomputes the scores, and is summed in one order. The channels of a gradient that do
not fit into registers are shared out over programs, which each recompute the scores.
"""

import torch
import triton
import triton.language as tl

from . import tuning

LN2 = tl.constexpr(0.6931471805599453)
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _load(pointer, stride, row, rows, channel, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """Block [ROWS, CHANNELS] of a [rows, channels] matrix; zeros outside."""
    r, c = row + tl.arange(0, ROWS), channel + tl.arange(0, CHANNELS)
    mask = (r < rows)[:, None] & (c < channels)[None, :]
    return tl.load(pointer + r.to(tl.int64)[:, None] * stride + c[None, :], mask=mask, other=0.0)


@triton.jit
def _scores(
    left, stride_left, row, right, stride_right, column, cells, channels,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Products [ROWS, COLUMNS] of two blocks of cells."""
    scores = tl.zeros([ROWS, COLUMNS], tl.float32)
    for c in tl.range(0, channels, BLOCK_K):
        a = _load(left, stride_left, row, cells, c, channels, ROWS, BLOCK_K)
        b = _load(right, stride_right, column, cells, c, channels, COLUMNS, BLOCK_K)
        scores = tl.dot(a, b.T, scores, input_precision=PRECISION)
    return scores


@triton.jit
def _near(key, centre, cells, width, radius, WINDOWED: tl.constexpr):
    """Which keys count; a window is a square around the centre. ``key`` and ``centre`` broadcast."""
    near = key < cells
    if WINDOWED:
        near &= tl.abs(key % width - centre % width) <= radius
        near &= tl.abs(key // width - centre // width) <= radius
    return near


@triton.jit
def _depth(near, channels, WINDOWED: tl.constexpr):
    """Channels to multiply: none for a block that no window touches."""
    if WINDOWED:
        return tl.where(tl.max(near.to(tl.int32)) > 0, channels, 0)
    else:
        return channels


@triton.jit
def _reach(centre, inside, cells, width, radius, BLOCK: tl.constexpr, WINDOWED: tl.constexpr):
    """First and last+1 cell that windows around the centres can hold, the first a multiple of the block."""
    if WINDOWED:
        top = tl.min(tl.where(inside, centre, cells)) // width - radius
        bottom = tl.max(tl.where(inside, centre, 0)) // width + radius + 1
        return tl.maximum(top, 0) * width // BLOCK * BLOCK, tl.minimum(bottom * width, cells)
    else:
        return 0, cells


@triton.jit
def _best_match(
    query_ptr, key_ptr, best_ptr, stride_qb, stride_q, stride_kb, stride_k, cells, channels,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Index of the key with the largest score, the first of equals."""
    tiles = tl.cdiv(cells, BLOCK_M)
    batch, row = tl.cast(tl.program_id(0) // tiles, tl.int64), tl.program_id(0) % tiles * BLOCK_M
    query, key = query_ptr + batch * stride_qb, key_ptr + batch * stride_kb
    top = tl.full([BLOCK_M], -float("inf"), tl.float32)
    best = tl.zeros([BLOCK_M], tl.int32)
    for n in tl.range(0, cells, BLOCK_N):
        scores = _scores(
            query, stride_q, row, key, stride_k, n, cells, channels, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION
        )  # fmt: skip
        scores = tl.where((n + tl.arange(0, BLOCK_N) < cells)[None, :], scores, -float("inf"))
        block_top, block_best = tl.max(scores, 1, return_indices=True)
        better = block_top > top
        best = tl.where(better, n + block_best, best)
        top = tl.where(better, block_top, top)
    rows = row + tl.arange(0, BLOCK_M)
    tl.store(best_ptr + batch * cells + rows, best.to(tl.int64), mask=rows < cells)


@triton.jit
def _forward(
    query_ptr, key_ptr, flow_ptr, confidence_ptr, entropy_ptr, lse_ptr, best_ptr,
    stride_qb, stride_q, stride_kb, stride_k, cells, channels, width, scale, radius,
    WINDOWED: tl.constexpr, LOCAL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(cells, BLOCK_M)
    batch, row = tl.cast(tl.program_id(0) // tiles, tl.int64), tl.program_id(0) % tiles * BLOCK_M
    query, key = query_ptr + batch * stride_qb, key_ptr + batch * stride_kb
    rows = row + tl.arange(0, BLOCK_M)
    inside = rows < cells
    centre = rows
    if LOCAL:
        centre = tl.load(best_ptr + batch * cells + rows, mask=inside, other=0).to(tl.int32)

    top = tl.full([BLOCK_M], -1e38, tl.float32)  # finite: see LOWEST of st_attention
    total = tl.zeros([BLOCK_M], tl.float32)
    sum_x = tl.zeros([BLOCK_M], tl.float32)
    sum_y = tl.zeros([BLOCK_M], tl.float32)
    sum_score = tl.zeros([BLOCK_M], tl.float32)
    first, last = _reach(centre, inside, cells, width, radius, BLOCK_N, WINDOWED)
    for n in tl.range(first, last, BLOCK_N):
        columns = n + tl.arange(0, BLOCK_N)
        near = _near(columns[None, :], centre[:, None], cells, width, radius, WINDOWED)
        depth = _depth(near, channels, WINDOWED)
        scores = _scores(
            query, stride_q, row, key, stride_k, n, cells, depth, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION
        ) * scale  # fmt: skip
        top_next = tl.maximum(top, tl.max(tl.where(near, scores, -float("inf")), 1))
        weights = tl.where(near, tl.math.exp2(scores - top_next[:, None]), 0.0)
        shrink = tl.math.exp2(top - top_next)
        # positions relative to the first query of the block, for small numbers
        x = (columns % width - row % width).to(tl.float32)
        y = (columns // width - row // width).to(tl.float32)
        total = total * shrink + tl.sum(weights, 1)
        sum_x = sum_x * shrink + tl.sum(weights * x[None, :], 1)
        sum_y = sum_y * shrink + tl.sum(weights * y[None, :], 1)
        sum_score = sum_score * shrink + tl.sum(weights * scores, 1)
        top = top_next

    cell = batch * cells + rows
    flow_x = sum_x / total - (rows % width - row % width)
    flow_y = sum_y / total - (rows // width - row // width)
    tl.store(flow_ptr + 2 * batch * cells + rows, flow_x, mask=inside)
    tl.store(flow_ptr + (2 * batch + 1) * cells + rows, flow_y, mask=inside)
    lse = top + tl.math.log2(total)
    tl.store(confidence_ptr + cell, 1.0 / total, mask=inside)
    tl.store(entropy_ptr + cell, (lse - sum_score / total) * LN2, mask=inside)
    tl.store(lse_ptr + cell, lse * LN2, mask=inside)


@triton.jit
def _load_saved(flow_ptr, grad_ptr, lse_ptr, best_ptr, batch, rows, cells, LOCAL: tl.constexpr):
    """Of some queries: displacement and its gradient, the LSE in powers of 2 (+inf outside), centre of the window."""
    inside = rows < cells
    x, y = 2 * batch * cells + rows, (2 * batch + 1) * cells + rows
    flow_x, flow_y = tl.load(flow_ptr + x, mask=inside, other=0.0), tl.load(flow_ptr + y, mask=inside, other=0.0)
    grad_x, grad_y = tl.load(grad_ptr + x, mask=inside, other=0.0), tl.load(grad_ptr + y, mask=inside, other=0.0)
    lse = tl.load(lse_ptr + batch * cells + rows, mask=inside, other=float("inf")) * LOG2E
    centre = rows
    if LOCAL:
        centre = tl.load(best_ptr + batch * cells + rows, mask=inside, other=0).to(tl.int32)
    return flow_x, flow_y, grad_x, grad_y, lse, centre


@triton.jit
def _grad_scores(scores, key, own, flow_x, flow_y, grad_x, grad_y, lse, near, width):
    """P * (g . (p_j - p_i - E)); everything broadcasts to the shape of the scores."""
    weights = tl.where(near, tl.math.exp2(scores - lse), 0.0)
    mean_x, mean_y = (own % width).to(tl.float32) + flow_x, (own // width).to(tl.float32) + flow_y
    x, y = (key % width).to(tl.float32), (key // width).to(tl.float32)
    return weights * (grad_x * (x - mean_x) + grad_y * (y - mean_y))


@triton.jit
def _backward_query(
    query_ptr, key_ptr, out_ptr, flow_ptr, grad_ptr, lse_ptr, best_ptr,
    stride_qb, stride_q, stride_kb, stride_k, cells, channels, width, scale, factor, radius,
    WINDOWED: tl.constexpr, LOCAL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """BLOCK_C channels of dQ of a block of queries."""
    tiles, parts = tl.cdiv(cells, BLOCK_M), tl.cdiv(channels, BLOCK_C)
    part, tile = tl.program_id(0) % parts, tl.program_id(0) // parts
    batch, row = tl.cast(tile // tiles, tl.int64), tile % tiles * BLOCK_M
    query, key = query_ptr + batch * stride_qb, key_ptr + batch * stride_kb
    rows = row + tl.arange(0, BLOCK_M)
    flow_x, flow_y, grad_x, grad_y, lse, centre = _load_saved(
        flow_ptr, grad_ptr, lse_ptr, best_ptr, batch, rows, cells, LOCAL
    )  # fmt: skip
    acc = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    first, last = _reach(centre, rows < cells, cells, width, radius, BLOCK_N, WINDOWED)
    for n in tl.range(first, last, BLOCK_N):
        columns = (n + tl.arange(0, BLOCK_N))[None, :]
        near = _near(columns, centre[:, None], cells, width, radius, WINDOWED)
        depth = _depth(near, channels, WINDOWED)
        scores = _scores(
            query, stride_q, row, key, stride_k, n, cells, depth, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION
        ) * scale  # fmt: skip
        ds = _grad_scores(
            scores, columns, rows[:, None], flow_x[:, None], flow_y[:, None], grad_x[:, None], grad_y[:, None],
            lse[:, None], near, width,
        )  # fmt: skip
        k = _load(key, stride_k, n, cells, part * BLOCK_C, channels, BLOCK_N, BLOCK_C)
        acc = tl.dot(ds.to(k.dtype), k, acc, input_precision=PRECISION)
    c = part * BLOCK_C + tl.arange(0, BLOCK_C)
    place = out_ptr + (batch * cells + rows)[:, None] * channels + c[None, :]
    mask = (rows < cells)[:, None] & (c < channels)[None, :]
    tl.store(place, (acc * factor).to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _backward_key(
    query_ptr, key_ptr, out_ptr, flow_ptr, grad_ptr, lse_ptr, best_ptr,
    stride_qb, stride_q, stride_kb, stride_k, cells, channels, width, scale, factor, radius,
    WINDOWED: tl.constexpr, LOCAL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """BLOCK_C channels of dK of a block of keys."""
    tiles, parts = tl.cdiv(cells, BLOCK_N), tl.cdiv(channels, BLOCK_C)
    part, tile = tl.program_id(0) % parts, tl.program_id(0) // parts
    batch, column = tl.cast(tile // tiles, tl.int64), tile % tiles * BLOCK_N
    query, key = query_ptr + batch * stride_qb, key_ptr + batch * stride_kb
    columns = column + tl.arange(0, BLOCK_N)
    acc = tl.zeros([BLOCK_N, BLOCK_C], tl.float32)
    # a window around the query holds the keys whose window holds the query; a best match can be anywhere
    first, last = _reach(columns, columns < cells, cells, width, radius, BLOCK_M, WINDOWED and not LOCAL)
    for m in tl.range(first, last, BLOCK_M):
        rows = m + tl.arange(0, BLOCK_M)
        flow_x, flow_y, grad_x, grad_y, lse, centre = _load_saved(
            flow_ptr, grad_ptr, lse_ptr, best_ptr, batch, rows, cells, LOCAL
        )  # fmt: skip
        near = _near(columns[:, None], centre[None, :], cells, width, radius, WINDOWED)
        depth = _depth(near, channels, WINDOWED)
        scores = _scores(
            key, stride_k, column, query, stride_q, m, cells, depth, BLOCK_N, BLOCK_M, BLOCK_K, PRECISION
        ) * scale  # fmt: skip
        ds = _grad_scores(
            scores, columns[:, None], rows[None, :], flow_x[None, :], flow_y[None, :], grad_x[None, :],
            grad_y[None, :], lse[None, :], near, width,
        )  # fmt: skip
        q = _load(query, stride_q, m, cells, part * BLOCK_C, channels, BLOCK_M, BLOCK_C)
        acc = tl.dot(ds.to(q.dtype), q, acc, input_precision=PRECISION)
    c = part * BLOCK_C + tl.arange(0, BLOCK_C)
    place = out_ptr + (batch * cells + columns)[:, None] * channels + c[None, :]
    mask = (columns < cells)[:, None] & (c < channels)[None, :]
    tl.store(place, (acc * factor).to(out_ptr.dtype.element_ty), mask=mask)


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """Unit stride of the channels, by a copy where it is not so."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def forward(
    query: torch.Tensor, key: torch.Tensor, height: int, width: int, temperature: float, radius: int, local: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Flow [B, 2, h, w], confidence, entropy and LSE [B, h, w] in float32, and the best match (local mode), int64.

    Shapes:
        query, key: [B, h*w, C]; ``radius`` -1 for none.
    """
    query, key = _rows(query), _rows(key)
    batch, cells, channels = query.shape
    flow = torch.empty((batch, 2, height, width), dtype=torch.float32, device=query.device)
    extras = [torch.empty((batch, height, width), dtype=torch.float32, device=query.device) for _ in range(3)]
    best = torch.zeros((batch, height, width), dtype=torch.int64, device=query.device)
    inputs = (*query.stride()[:2], *key.stride()[:2], cells, channels)
    with tuning.on_device(query.device):
        config = tuning.config("softargmax_flow" if radius < 0 else "softargmax_flow_window", query.dtype)
        blocks = dict(zip(("BLOCK_M", "BLOCK_N", "BLOCK_K"), config.tile, strict=True))
        options = {**blocks, **config.options, "PRECISION": tuning.dot_precision(query.dtype)}
        grid = (batch * triton.cdiv(cells, blocks["BLOCK_M"]),)
        if local:
            _best_match[grid](query, key, best, *inputs, **options)
        _forward[grid](
            query, key, flow, *extras, best, *inputs, width, LOG2E.value / temperature, radius,
            WINDOWED=radius >= 0, LOCAL=local, **options,
        )  # fmt: skip
    return flow, *extras, best


def backward(
    grad: torch.Tensor, query: torch.Tensor, key: torch.Tensor, flow: torch.Tensor, lse: torch.Tensor,
    best: torch.Tensor, temperature: float, radius: int, local: bool,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Gradients of query and key, contiguous; ``flow``, ``lse`` and ``best`` from the forward pass."""
    query, key, grad = _rows(query), _rows(key), grad.contiguous()
    batch, cells, channels = query.shape
    found = []
    for kernel, name in (
        (_backward_query, "softargmax_flow_backward_query"),
        (_backward_key, "softargmax_flow_backward_key"),
    ):
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        with tuning.on_device(query.device):
            config = tuning.config(name, query.dtype)
            blocks = dict(zip(("BLOCK_M", "BLOCK_N", "BLOCK_K", "BLOCK_C"), config.tile, strict=True))
            owned = blocks["BLOCK_M" if kernel is _backward_query else "BLOCK_N"]
            programs = batch * triton.cdiv(cells, owned) * triton.cdiv(channels, blocks["BLOCK_C"])
            kernel[(programs,)](
                query, key, out, flow, grad, lse, best, *query.stride()[:2], *key.stride()[:2], cells, channels,
                flow.shape[-1], LOG2E.value / temperature, 1.0 / temperature, radius, WINDOWED=radius >= 0, LOCAL=local,
                PRECISION=tuning.dot_precision(query.dtype), **blocks, **config.options,
            )  # fmt: skip
        found.append(out)
    return tuple(found)
