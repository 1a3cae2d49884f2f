"""st_attention: one softmax over the tokens of several frames and several streams, without joining them in memory."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from .. import backends, reference
from . import _check

_BAND_ELEMENTS = 2**28  # scores alive at once where an LSE needs a pass of its own: 1 GB in float32


def st_attention(
    q: Sequence[torch.Tensor],
    k: Sequence[torch.Tensor],
    v: Sequence[torch.Tensor],
    *,
    scale: float | None = None,
    frames: int | None = None,
    window: int | None = None,
    reference_frames: Sequence[int] = (),
    stream_weights: Sequence[float] | None = None,
    score_bound: float | None = None,
    return_lse: bool = False,
    backend: str = "auto",
) -> list[torch.Tensor] | tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Every query token of every stream attends to the key tokens of all streams and frames.

    Equivalent to: joining the streams along their tokens, ``softmax(q k^T * scale + bias) v``, and splitting again;
    bias is -inf between frames more than ``window`` apart, and log(weight) for the keys of a weighted stream.

    Shapes:
        q: list of streams, each [B, F, T_s, heads, d], or [B, L_s, heads, d] for tokens that belong to every frame
        (with ``frames=F``: L_s = F * T_s tokens, frame by frame). A 5-D stream with one frame beside others with F > 1
        belongs to every frame too. k, v: lists of equal length, v shaped as k; they may hold more or fewer streams than
        q. Any strides with unit stride of d (other streams are copied by the triton backend).
        Returns a list of outputs shaped as q; with ``return_lse`` also a list of log-sum-exps, at least float32, shaped
        as q without its last axis.
    Args:
        scale: of the products, 1/sqrt(d) by default.
        window: tokens of frame i see keys of frames j with |i - j| <= window; None sees all frames.
        reference_frames: frames whose keys every frame sees besides its window.
        stream_weights: multiplicity of each key stream: weight n equals n copies of that stream, 0 hides it.
        score_bound: no |scale <q_i, k_j>| is larger, as is known of normalised q and k, say. Changes how the triton
            backend computes, never what: it leaves out the running maximum where the bound allows it, and repeats
            with it any tile of queries whose sums show that the bound was wrong.
    A row that sees no key gives output 0 and LSE -inf. The LSE is not differentiable.
    Raises:
        ValueError, TypeError: lists, shapes, dtypes or devices that do not fit together.
        RuntimeError: the named backend cannot run.
    Source: DA-Flow (arXiv 2603.23499), section 4.2, full spatio-temporal attention; online softmax as FlashAttention's.
    """
    _check_streams(q, k, v, frames, window, reference_frames, stream_weights)
    if score_bound is not None and not score_bound >= 0:  # also refuses NaN
        raise ValueError(f"st_attention: score_bound must be >= 0 or None, got {score_bound}")
    device = q[0].device
    if torch.is_autocast_enabled(device.type):  # as scaled_dot_product_attention
        q, k, v = ([s.to(torch.get_autocast_dtype(device.type)) for s in streams] for streams in (q, k, v))
    scale = q[0].shape[-1] ** -0.5 if scale is None else float(scale)
    chosen = backends.resolve("st_attention", backend, device)
    if chosen == "reference":
        return reference.st_attention(
            q, k, v, scale=scale, frames=frames, window=window, reference_frames=reference_frames,
            stream_weights=stream_weights, return_lse=return_lse,
        )  # fmt: skip
    weights = [1.0] * len(k) if stream_weights is None else [float(weight) for weight in stream_weights]
    seen = [index for index, stream in enumerate(k) if weights[index] > 0 and _tokens(stream) > 0]
    if seen:
        queries, keys, values = ([_by_frame(s, frames) for s in streams] for streams in (q, k, v))
        arguments = (
            queries, [keys[i] for i in seen], [values[i] for i in seen], scale, window, reference_frames,
            [weights[i] for i in seen], return_lse,
        )  # fmt: skip
        outputs, lse = _sdpa(*arguments) if chosen == "sdpa" else _triton(*arguments, score_bound)
    else:  # zeros that stay part of the graph
        outputs = [s.masked_fill(s.new_ones((), dtype=torch.bool), 0.0) for s in q]
        lse = [s.new_full(s.shape[:-1], -math.inf, dtype=_wide(s)) for s in q]
    outputs = [out.reshape(s.shape) for out, s in zip(outputs, q, strict=True)]
    if not return_lse:
        return outputs
    return outputs, [part.reshape(s.shape[:-1]) for part, s in zip(lse, q, strict=True)]


def _check_streams(
    q: Sequence[torch.Tensor],
    k: Sequence[torch.Tensor],
    v: Sequence[torch.Tensor],
    frames: int | None,
    window: int | None,
    reference_frames: Sequence[int],
    stream_weights: Sequence[float] | None,
) -> None:
    op = "st_attention"
    for name, streams in (("q", q), ("k", k), ("v", v)):
        if not isinstance(streams, Sequence) or len(streams) == 0:
            raise TypeError(f"{op}: {name} must be a non-empty list of streams, got {type(streams).__name__}")
        for index, stream in enumerate(streams):
            label = f"{name}[{index}]"
            rank = 5 if isinstance(stream, torch.Tensor) and stream.dim() == 5 else 4
            _check.floating(op, label, stream, rank, "[B, F, T, heads, d] or [B, L, heads, d]")
            _check.same(op, "q[0]", q[0], label, stream)
            if stream.shape[-1] == 0:
                raise ValueError(f"{op}: {label} has heads of no channels: {_check.spell(stream)}")
            if stream.shape[0] != q[0].shape[0] or stream.shape[-2:] != q[0].shape[-2:]:
                raise ValueError(
                    f"{op}: {label} is {_check.spell(stream)} but q[0] is {_check.spell(q[0])}; B, heads, d differ"
                )
    if len(k) != len(v) or any(key.shape != value.shape for key, value in zip(k, v, strict=True)):
        raise ValueError(f"{op}: k and v must hold streams of the same shapes, got {len(k)} and {len(v)} streams")
    counts = {s.shape[1] for s in (*q, *k) if s.dim() == 5} - {1}
    if len(counts | ({frames} if frames else set())) > 1:
        raise ValueError(f"{op}: streams have {sorted(counts)} frames (frames={frames}); expected one number, or 1")
    if frames is not None:
        if frames < 1:
            raise ValueError(f"{op}: frames must be >= 1 or None, got {frames}")
        odd = [list(s.shape) for s in (*q, *k) if s.dim() == 4 and s.shape[1] % frames]
        if odd:
            raise ValueError(f"{op}: frames={frames} must divide the tokens of every 4-D stream, got {odd}")
    if window is not None and (not isinstance(window, int) or window < 0):
        raise ValueError(f"{op}: window must be an integer >= 0 or None, got {window!r}")
    total = max(counts | {frames or 1})
    if not isinstance(reference_frames, Sequence) or not all(isinstance(frame, int) for frame in reference_frames):
        raise TypeError(f"{op}: reference_frames must be a list of integers, got {reference_frames!r}")
    if any(not 0 <= frame < total for frame in reference_frames):
        raise ValueError(f"{op}: reference_frames {tuple(reference_frames)} are outside 0..{total - 1}")
    weights = [1] * len(k) if stream_weights is None else stream_weights
    if len(weights) != len(k) or not all(0 <= weight < math.inf for weight in weights):
        raise ValueError(
            f"{op}: stream_weights must be {len(k)} finite numbers >= 0, one per key stream, got {stream_weights!r}"
        )


def _tokens(stream: torch.Tensor) -> int:
    return math.prod(stream.shape[1:-2])


def _wide(tensor: torch.Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _by_frame(stream: torch.Tensor, frames: int | None) -> torch.Tensor:
    """[B, F, T, heads, d], with F = 1 for tokens that belong to every frame; a view."""
    if stream.dim() == 5:
        return stream
    return stream.unsqueeze(1) if frames is None else stream.unflatten(1, (frames, stream.shape[1] // frames))


# ---- sdpa -----------------------------------------------------------------------------------------------------------


def _sdpa(
    q: Any,
    k: Any,
    v: Any,
    scale: float,
    window: int | None,
    reference_frames: Sequence[int],
    weights: Any,
    return_lse: bool,
) -> Any:
    """PyTorch's fused attention on packed buffers; under a window, one call per frame, on the keys that it sees."""
    if q[0].device.type != "cpu":  # a bias keeps PyTorch from its fast kernels there, and has the precision of q
        copies = [int(weight) if weight.is_integer() else 1 for weight in weights]
        k, v = ([s.repeat(1, 1, n, 1, 1) if n > 1 else s for s, n in zip(x, copies, strict=True)] for x in (k, v))
        weights = [weight / n for weight, n in zip(weights, copies, strict=True)]
    total = max(stream.shape[1] for stream in (*q, *k))
    if window is None or window >= total - 1:
        return _attend(q, k, v, scale, weights, return_lse)

    pieces: list[list] = [[] for _ in q]  # (output, lse) by frame
    framed = [index for index, stream in enumerate(q) if stream.shape[1] > 1]
    for frame in range(total if framed else 0):
        near = range(max(frame - window, 0), min(frame + window + 1, total))
        spans = [(near.start, near.stop), *((r, r + 1) for r in sorted(set(reference_frames)) if r not in near)]
        keys, values = ([_frames(stream, spans) for stream in streams] for streams in (k, v))
        rows = [q[index][:, frame : frame + 1] for index in framed]
        for index, *piece in zip(framed, *_attend(rows, keys, values, scale, weights, return_lse), strict=True):
            pieces[index].append(piece)
    shared = [index for index in range(len(q)) if index not in framed]
    if shared:
        found = _attend([q[index] for index in shared], k, v, scale, weights, return_lse)
        for index, *piece in zip(shared, *found, strict=True):
            pieces[index].append(piece)
    outputs = [torch.cat([out for out, _ in by_frame], 1) for by_frame in pieces]
    return outputs, [torch.cat([lse for _, lse in by_frame], 1) for by_frame in pieces] if return_lse else None


def _frames(stream: torch.Tensor, spans: Sequence[tuple[int, int]]) -> torch.Tensor:
    return stream if stream.shape[1] == 1 else torch.cat([stream[:, first:last] for first, last in spans], 1)


def _attend(q: Any, k: Any, v: Any, scale: float, weights: Any, return_lse: bool) -> Any:
    """Every query sees every key: outputs [B, F, T, heads, d], and LSEs without the last axis (or Nones)."""
    queries, keys, values = (torch.cat([s.flatten(1, 2) for s in x], 1).transpose(1, 2) for x in (q, k, v))
    bias = None
    if any(weight != 1 for weight in weights):
        # float32 beside half precision, where log(3) would be off by 0.3 % (CPU only: CUDA demands one dtype)
        half_on_cpu = queries.device.type == "cpu" and queries.dtype in (torch.float16, torch.bfloat16)
        dtype = torch.float32 if half_on_cpu else queries.dtype
        parts = [s.new_full((_tokens(s),), math.log(weight), dtype=dtype) for s, weight in zip(k, weights, strict=True)]
        bias = torch.cat(parts).expand(1, 1, queries.shape[2], -1)
    lse: Any  # a tensor where it is asked for
    if queries.shape[2] == 0:
        out, lse = queries, queries[..., 0]
    elif return_lse and queries.device.type == "cpu":
        attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, lse = attend(queries, keys, values, attn_mask=bias, scale=scale)
    else:
        out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias, scale=scale)
        lse = _log_sum_exp(queries, keys, bias, scale) if return_lse else None
    lengths = [_tokens(s) for s in q]
    outputs = [part.reshape(s.shape) for part, s in zip(out.transpose(1, 2).split(lengths, 1), q, strict=True)]
    if not return_lse:
        return outputs, [None] * len(q)
    parts = lse.detach().to(_wide(lse)).transpose(1, 2).split(lengths, 1)
    return outputs, [part.reshape(s.shape[:-1]) for part, s in zip(parts, q, strict=True)]


@torch.no_grad()
def _log_sum_exp(queries: torch.Tensor, keys: torch.Tensor, bias: torch.Tensor | None, scale: float) -> torch.Tensor:
    """[B, heads, Nq] in bands of rows: a second pass of products, as SDPA does not return it."""
    rows = max(1, _BAND_ELEMENTS // max(1, queries.shape[0] * queries.shape[1] * keys.shape[2]))
    parts = []
    for first in range(0, queries.shape[2], rows):
        scores = (queries[:, :, first : first + rows].float() @ keys.float().transpose(-1, -2)) * scale
        parts.append(torch.logsumexp(scores if bias is None else scores + bias[:, :, :1], -1))
    return torch.cat(parts, -1)


# ---- triton ---------------------------------------------------------------------------------------------------------


def _triton(
    q: Any,
    k: Any,
    v: Any,
    scale: float,
    window: int | None,
    reference_frames: Sequence[int],
    weights: Any,
    return_lse: bool,
    score_bound: float | None,
) -> Any:
    q, k, v = ([s if s.stride(-1) == 1 else s.contiguous() for s in streams] for streams in (q, k, v))
    if scale <= 0:  # the kernels find the largest score before they scale it
        sign = -1.0 if scale < 0 else 0.0
        q, scale = [s * sign for s in q], abs(scale) or 1.0
    filled = [s for s in q if _tokens(s) > 0]
    found = torch.ops.daflow_ext.st_attention(
        filled, k, v, scale, -1 if window is None else window, list(map(int, reference_frames)), weights,
        math.inf if score_bound is None else float(score_bound),
    )  # fmt: skip
    *outputs, lse = found if filled else (q[0].new_empty(0),)
    remaining: Iterator[torch.Tensor] = iter(outputs)
    outputs = [next(remaining) if _tokens(s) > 0 else s.clone() for s in q]
    if not return_lse:
        return outputs, None
    parts = lse.split([_tokens(s) for s in q], -1)  # of [B, heads, N]
    return outputs, [part.transpose(1, 2).unflatten(1, s.shape[1:3]) for part, s in zip(parts, q, strict=True)]


@torch.library.custom_op("daflow_ext::st_attention", mutates_args=())
def _st_attention(
    q: Sequence[torch.Tensor], k: Sequence[torch.Tensor], v: Sequence[torch.Tensor], scale: float, window: int,
    reference_frames: Sequence[int], weights: Sequence[float], score_bound: float,
) -> list[torch.Tensor]:  # fmt: skip
    """The Triton kernels: outputs contiguous, then the LSE [B, heads, tokens of all q]. Opaque to torch.compile."""
    from ..kernels.triton import st_attention as kernels

    return kernels.forward(q, k, v, scale, window, reference_frames, weights, score_bound)


@_st_attention.register_fake
def _(
    q: Any,
    k: Any,
    v: Any,
    scale: float,
    window: int | None,
    reference_frames: Sequence[int],
    weights: Any,
    score_bound: float | None,
) -> list[torch.Tensor]:
    batch, heads = q[0].shape[0], q[0].shape[3]
    lse = q[0].new_empty((batch, heads, sum(s.shape[1] * s.shape[2] for s in q)), dtype=torch.float32)
    return [*(s.new_empty(s.shape) for s in q), lse]


@torch.library.custom_op("daflow_ext::st_attention_backward", mutates_args=())
def _st_attention_backward(
    grads: Sequence[torch.Tensor], q: Sequence[torch.Tensor], k: Sequence[torch.Tensor], v: Sequence[torch.Tensor],
    outputs: Sequence[torch.Tensor], lse: torch.Tensor, scale: float, window: int, reference_frames: Sequence[int],
    weights: Sequence[float],
) -> list[torch.Tensor]:  # fmt: skip
    from ..kernels.triton import st_attention_backward as kernels

    return kernels.backward(grads, q, k, v, outputs, lse, scale, window, reference_frames, weights)


@_st_attention_backward.register_fake
def _(
    grads: Any,
    q: Any,
    k: Any,
    v: Any,
    outputs: Any,
    lse: Any,
    scale: float,
    window: int | None,
    reference_frames: Sequence[int],
    weights: Any,
) -> list[torch.Tensor]:
    return [s.new_empty(s.shape) for s in (*q, *k, *v)]


def _setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
    q, k, v, *ctx.options, _score_bound = inputs
    *outputs, lse = output
    ctx.save_for_backward(*q, *k, *v, *outputs, lse)
    ctx.lengths = len(q), len(k)


def _backward(ctx: Any, grads: Any) -> tuple:
    n, m = ctx.lengths
    *saved, lse = ctx.saved_tensors
    q, k, v, outputs = saved[:n], saved[n : n + m], saved[n + m : n + 2 * m], saved[n + 2 * m :]
    grads = [torch.zeros_like(out) if grad is None else grad for grad, out in zip(grads, outputs, strict=False)]
    found = torch.ops.daflow_ext.st_attention_backward(grads, q, k, v, outputs, lse, *ctx.options)
    no_frames: list | None = [] if len(ctx.options[2]) == 0 else None  # autograd takes an empty list for one of tensors
    return found[:n], found[n : n + m], found[n + m :], None, None, no_frames, None, None


_st_attention.register_autograd(_backward, setup_context=_setup_context)
