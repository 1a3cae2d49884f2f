"""softargmax_flow: correspondence of two token grids as attention whose values are positions."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from .. import backends, reference
from ..reference.softargmax_flow import DEFAULT_LOCAL_RADIUS
from . import _check

_CHUNK_ELEMENTS = 2**22  # scores alive at once on the CPU: 16 MB in float32
_KEYS_AT_ONCE = 2048  # keys widened to float32 at once


class SoftargmaxFlow(NamedTuple):
    """Displacement [B, 2, h, w] in grid cells (x, y) and, per cell [B, h, w]: largest probability, entropy in nats, and
    log-sum-exp of the scores."""

    flow: torch.Tensor
    confidence: torch.Tensor
    entropy: torch.Tensor
    lse: torch.Tensor


def softargmax_flow(
    query: torch.Tensor,
    key: torch.Tensor,
    grid_size: tuple[int, int],
    *,
    temperature: float = 1.0,
    radius: int | None = None,
    mode: str = "global",
    details: bool = False,
    backend: str = "auto",
) -> torch.Tensor | SoftargmaxFlow:
    """Where did each cell go? The expected position of its match, minus its own position.

    With scores s_ij = <query_i, key_j> / temperature and cell positions p_j: flow_i = sum_j softmax_j(s_ij) p_j - p_i.
    The h*w x h*w scores are never stored. Channels of several layers joined, ``torch.cat([q1, q2], -1)``, add up their
    scores.

    Equivalent to: ``softmax(query @ key.mT / temperature, -1) @ positions - positions``.

    Shapes:
        query, key: [B, h*w, C], row-major over the grid. Returns [B, 2, h, w], channel 0 = x, in the dtype of query but
        at least float32; with ``details`` a :class:`SoftargmaxFlow` (float32 extras, not differentiable).
    Units:
        grid cells; multiply by the cell size for image pixels.
    Args:
        temperature: divides the scores; sqrt(C) gives the scale of attention.
        radius: global mode: match only within this many cells (in x and in y) of the own position; local mode: size of
            the window around the best match, 4 by default.
        mode: "global", or "local": softargmax in a window around the arg-max, which several far-apart candidates do not
            pull towards their middle.
    Gradients: query and key (local mode: the window is held fixed).
    Raises:
        ValueError, TypeError: shapes, dtypes or options that do not fit together.
        RuntimeError: the named backend cannot run.
    Source: DA-Flow (arXiv 2603.23499), zero-shot correspondence by softargmax of query-key products.
    """
    _check.floating("softargmax_flow", "query", query, 3, "[B, h*w, C]")
    _check.floating("softargmax_flow", "key", key, 3, "[B, h*w, C]")
    _check.same("softargmax_flow", "query", query, "key", key)
    if not isinstance(grid_size, Sequence) or len(grid_size) != 2 or min(grid_size) < 1:
        raise ValueError(f"softargmax_flow: grid_size must be (h, w), both >= 1, got {grid_size!r}")
    height, width = grid_size
    if query.shape != key.shape or query.shape[1] != height * width:
        raise ValueError(
            f"softargmax_flow: query {_check.spell(query)} and key {_check.spell(key)} must both be "
            f"[B, {height} * {width}, C]"
        )
    if not temperature > 0:
        raise ValueError(f"softargmax_flow: temperature must be > 0, got {temperature!r}")
    if mode not in ("global", "local"):
        raise ValueError(f"softargmax_flow: mode must be 'global' or 'local', got {mode!r}")
    if radius is not None and (not isinstance(radius, int) or radius < 0):
        raise ValueError(f"softargmax_flow: radius must be an integer >= 0 or None, got {radius!r}")
    chosen = backends.resolve("softargmax_flow", backend, query.device)
    if chosen == "reference":
        out = reference.softargmax_flow(
            query, key, grid_size, temperature=temperature, radius=radius, mode=mode, details=details
        )
        return out if isinstance(out, torch.Tensor) else SoftargmaxFlow(*out)
    if mode == "local" and radius is None:
        radius = DEFAULT_LOCAL_RADIUS
    out = torch.ops.daflow_ext.softargmax_flow(
        query, key, height, width, float(temperature), -1 if radius is None else radius, mode == "local", details
    )
    return SoftargmaxFlow(*out[:4]) if details else out[0]


@torch.library.custom_op("daflow_ext::softargmax_flow", mutates_args=(), device_types="cpu")
def _softargmax_flow(
    query: torch.Tensor, key: torch.Tensor, height: int, width: int, temperature: float, radius: int, local: bool,
    details: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """-> flow, confidence, entropy, lse (on the CPU zeros without ``details``), and the best match in local mode."""
    batch, cells, _ = query.shape
    wide = _wide(query)
    flow = query.new_empty((batch, 2, cells), dtype=wide)
    extras = [query.new_zeros((batch, cells), dtype=torch.float32) for _ in range(3)]  # confidence, entropy, lse
    best = torch.zeros((batch, cells), dtype=torch.int64, device=query.device)
    positions = _positions(height, width, query.device, wide)
    matrices = _Matrices(query)
    for item in range(batch):
        for rows, columns in _bands(height, width, radius, local):
            scores = _scores(query[item, rows], key[item, columns], temperature, matrices)
            if local:
                best[item, rows] = scores.argmax(-1)
            _mask(scores, positions[rows], positions[columns], positions[best[item, rows]], radius, local)
            weights = torch.softmax(
                scores, -1, out=matrices("weights", (scores.shape[0], scores.shape[1])) if details else scores
            )
            # two products with a vector read the weights faster than one with two columns
            expected = torch.stack([weights.mv(axis) for axis in positions[columns].T.contiguous()])
            flow[item, :, rows] = expected - positions[rows].T
            if details:
                largest = weights.amax(-1)
                lse = scores.amax(-1) - largest.log()
                # sum p s; hidden keys have p = 0, s = -inf
                mean = weights.mul_(scores.nan_to_num_(neginf=0.0)).sum(-1)
                for extra, value in zip(extras, (largest, lse - mean, lse), strict=True):
                    extra[item, rows] = value.float()
    grid = (height, width)
    return tuple(out.unflatten(-1, grid) for out in (flow, *extras, best))


@_softargmax_flow.register_kernel("cuda")
def _(
    query: torch.Tensor,
    key: torch.Tensor,
    height: int,
    width: int,
    temperature: float,
    radius: int,
    local: bool,
    details: bool,
) -> Any:
    from ..kernels.triton import softargmax_flow as kernels

    return kernels.forward(query, key, height, width, temperature, radius, local)


@_softargmax_flow.register_fake
def _(
    query: torch.Tensor,
    key: torch.Tensor,
    height: int,
    width: int,
    temperature: float,
    radius: int,
    local: bool,
    details: bool,
) -> Any:
    batch = query.shape[0]
    flow = query.new_empty((batch, 2, height, width), dtype=_wide(query))
    extras = [query.new_empty((batch, height, width), dtype=torch.float32) for _ in range(3)]
    return flow, *extras, query.new_empty((batch, height, width), dtype=torch.int64)


@torch.library.custom_op("daflow_ext::softargmax_flow_backward", mutates_args=(), device_types="cpu")
def _softargmax_flow_backward(
    grad: torch.Tensor, query: torch.Tensor, key: torch.Tensor, flow: torch.Tensor, lse: torch.Tensor,
    best: torch.Tensor, temperature: float, radius: int, local: bool,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """dS_ij = P_ij (g_x (x_j - E x) + g_y (y_j - E y)) / temperature, recomputed band by band, here without ``lse``."""
    height, width = flow.shape[-2:]
    wide = _wide(query)
    grad_query = query.new_empty(query.shape)
    grad_key = torch.zeros(key.shape, dtype=wide, device=key.device)
    positions = _positions(height, width, query.device, wide)
    grad, flow, best = grad.flatten(2).to(wide), flow.flatten(2), best.flatten(1)
    matrices = _Matrices(query)
    for item in range(query.shape[0]):
        for rows, columns in _bands(height, width, radius, local):
            scores = _scores(query[item, rows], key[item, columns], temperature, matrices)
            _mask(scores, positions[rows], positions[columns], positions[best[item, rows]], radius, local)
            weights = torch.softmax(scores, -1, out=scores)
            g = grad[item, :, rows].T / temperature  # [rows, 2]
            expected = flow[item, :, rows].T + positions[rows]
            lever = torch.mm(g, positions[columns].T, out=matrices("lever", (scores.shape[0], scores.shape[1])))
            lever -= (g * expected).sum(-1, keepdim=True)
            weights *= lever
            grad_query[item, rows] = (weights @ key[item, columns].to(wide)).to(query.dtype)
            grad_key[item, columns].addmm_(weights.T, query[item, rows].to(wide))
    return grad_query, grad_key.to(key.dtype)


@_softargmax_flow_backward.register_kernel("cuda")
def _(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    flow: torch.Tensor,
    lse: torch.Tensor,
    best: torch.Tensor,
    temperature: float,
    radius: int,
    local: bool,
) -> Any:
    from ..kernels.triton import softargmax_flow as kernels

    return kernels.backward(grad, query, key, flow, lse, best, temperature, radius, local)


@_softargmax_flow_backward.register_fake
def _(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    flow: torch.Tensor,
    lse: torch.Tensor,
    best: torch.Tensor,
    temperature: float,
    radius: int,
    local: bool,
) -> Any:
    return query.new_empty(query.shape), key.new_empty(key.shape)


def _setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
    query, key, _, _, temperature, radius, local, _ = inputs
    flow, *extras, lse, best = output
    ctx.mark_non_differentiable(*extras, lse, best)
    ctx.save_for_backward(query, key, flow, lse, best)
    ctx.options = (temperature, radius, local)


def _backward(ctx: Any, grad: torch.Tensor, *_: Any) -> tuple:
    grads = torch.ops.daflow_ext.softargmax_flow_backward(grad, *ctx.saved_tensors, *ctx.options)
    return *grads, None, None, None, None, None, None


_softargmax_flow.register_autograd(_backward, setup_context=_setup_context)


def _wide(tensor: torch.Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _positions(height: int, width: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """[h*w, (x, y)]."""
    y, x = torch.meshgrid(
        torch.arange(height, device=device, dtype=dtype), torch.arange(width, device=device, dtype=dtype), indexing="ij"
    )
    return torch.stack((x.flatten(), y.flatten()), -1)


def _bands(height: int, width: int, radius: int, local: bool) -> Any:
    """Bands of whole grid rows, and the keys each may match: (slice of queries, slice of keys)."""
    reach = height if local or radius < 0 else radius
    rows = max(1, _CHUNK_ELEMENTS // (width * width * min(height, 2 * reach + 1)))
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        first, last = max(top - reach, 0), min(bottom + reach, height)
        yield slice(top * width, bottom * width), slice(first * width, last * width)


class _Matrices:
    """Memory of the matrices of a band, used again for every band: fresh pages would cost a fifth of the time."""

    def __init__(self, like: torch.Tensor):
        self._like = like
        self._memory: dict[str, torch.Tensor] = {}

    def __call__(self, name: str, shape: tuple[int, int]) -> torch.Tensor:
        rows, columns = shape
        if name not in self._memory or self._memory[name].numel() < rows * columns:
            self._memory[name] = self._like.new_empty(rows * columns, dtype=_wide(self._like))
        return self._memory[name][: rows * columns].view(rows, columns)


def _scores(query: torch.Tensor, key: torch.Tensor, temperature: float, matrices: _Matrices) -> torch.Tensor:
    """[rows, columns] in float32 at least: PyTorch would round the products of half precision to half precision."""
    scores = matrices("scores", (query.shape[0], key.shape[0]))
    query = query.to(scores.dtype) / temperature  # scaled where it is cheap
    for first in range(0, key.shape[0], _KEYS_AT_ONCE):
        last = first + _KEYS_AT_ONCE
        torch.mm(query, key[first:last].to(scores.dtype).T, out=scores[:, first:last])
    return scores


def _mask(
    scores: torch.Tensor, own: torch.Tensor, cells: torch.Tensor, best: torch.Tensor, radius: int, local: bool
) -> None:
    """Hide, in place, the keys farther than the radius from the own position (global) or the best match (local)."""
    if radius < 0:
        return
    centre = best if local else own
    for axis in range(2):
        scores.masked_fill_((cells[None, :, axis] - centre[:, None, axis]).abs() > radius, -torch.inf)
