"""st_attention: one softmax over the tokens of several frames and several streams, without joining them in memory."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from .. import backends, reference
from ..reference.st_attention import frame_of_tokens
from . import _check


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
    return_lse: bool = False,
    backend: str = "auto",
):
    """Every query token of every stream attends to the key tokens of all streams and frames.

    Equivalent to: joining the streams along their tokens, ``softmax(q k^T * scale + bias) v``, and splitting again; bias
    is -inf between frames more than ``window`` apart, and log(weight) for the keys of a weighted stream.

    Shapes:
        q: list of streams, each [B, F, T_s, heads, d], or [B, L_s, heads, d] for tokens that belong to every frame (with
        ``frames=F``: L_s = F * T_s tokens, frame by frame). A 5-D stream with one frame beside others with F > 1 belongs
        to every frame too. k, v: lists of equal length, v shaped as k; they may hold more or fewer streams than q. Any
        strides with unit stride of d.
        Returns a list of outputs shaped as q; with ``return_lse`` also a list of float32 log-sum-exps shaped as q
        without its last axis.
    Args:
        scale: of the products, 1/sqrt(d) by default.
        window: tokens of frame i see keys of frames j with |i - j| <= window; None sees all frames.
        reference_frames: frames whose keys every frame sees besides its window.
        stream_weights: multiplicity of each key stream: weight n equals n copies of that stream, 0 hides it.
    A row that sees no key gives output 0 and LSE -inf. The LSE is not differentiable.
    Raises:
        ValueError, TypeError: lists, shapes, dtypes or devices that do not fit together.
        RuntimeError: the named backend cannot run.
    Source: DA-Flow (arXiv 2603.23499), section 4.2 (full spatio-temporal attention); online softmax as in FlashAttention.
    """
    _check_streams(q, k, v, frames, window, reference_frames, stream_weights)
    scale = q[0].shape[-1] ** -0.5 if scale is None else float(scale)
    chosen = backends.resolve("st_attention", backend, q[0].device)
    if chosen == "reference":
        return reference.st_attention(
            q, k, v, scale=scale, frames=frames, window=window, reference_frames=reference_frames,
            stream_weights=stream_weights, return_lse=return_lse,
        )  # fmt: skip
    run = _sdpa if chosen == "sdpa" else _triton
    outputs, lse = run(q, k, v, scale, frames, window, tuple(reference_frames), stream_weights, return_lse)
    return (outputs, lse) if return_lse else outputs


def _check_streams(q, k, v, frames, window, reference_frames, stream_weights) -> None:
    op = "st_attention"
    for name, streams in (("q", q), ("k", k), ("v", v)):
        if isinstance(streams, torch.Tensor) or len(streams) == 0:
            raise TypeError(f"{op}: {name} must be a non-empty list of streams")
        for index, stream in enumerate(streams):
            label = f"{name}[{index}]"
            if stream.dim() not in (4, 5):
                raise ValueError(f"{op}: {label} must be [B, F, T, heads, d] or [B, L, heads, d], got {_check.spell(stream)}")
            _check.floating(op, label, stream, stream.dim(), "[B, (F,) T, heads, d]")
            _check.same(op, "q[0]", q[0], label, stream)
            if stream.shape[0] != q[0].shape[0] or stream.shape[-2:] != q[0].shape[-2:]:
                raise ValueError(f"{op}: {label} is {_check.spell(stream)} but q[0] is {_check.spell(q[0])}; B, heads, d differ")
    if len(k) != len(v) or any(key.shape != value.shape for key, value in zip(k, v, strict=True)):
        raise ValueError(f"{op}: k and v must hold streams of the same shapes, got {len(k)} and {len(v)} streams")
    counts = {s.shape[1] for s in (*q, *k) if s.dim() == 5} - {1}
    if len(counts | ({frames} if frames else set())) > 1:
        raise ValueError(f"{op}: streams have {sorted(counts)} frames (frames={frames}); expected one number, or 1")
    if frames is not None:
        odd = [list(s.shape) for s in (*q, *k) if s.dim() == 4 and s.shape[1] % frames]
        if frames < 1 or odd:
            raise ValueError(f"{op}: frames={frames} must divide the tokens of every 4-D stream, got {odd}")
    if window is not None and (not isinstance(window, int) or window < 0):
        raise ValueError(f"{op}: window must be an integer >= 0 or None, got {window!r}")
    total = max(counts | {frames or 1})
    if any(not 0 <= frame < total for frame in reference_frames):
        raise ValueError(f"{op}: reference_frames {tuple(reference_frames)} are outside 0..{total - 1}")
    if stream_weights is not None and (len(stream_weights) != len(k) or any(w < 0 for w in stream_weights)):
        raise ValueError(f"{op}: stream_weights must be {len(k)} numbers >= 0, one per key stream, got {stream_weights!r}")


def _sdpa(q, k, v, scale, frames, window, reference_frames, stream_weights, return_lse):
    """PyTorch's fused attention on packed buffers; a window is one call per query frame on the keys it sees."""
    queries, keys, values = (torch.cat([_tokens(s) for s in streams], 1).transpose(1, 2) for streams in (q, k, v))
    bias = None
    if stream_weights is not None:
        weights = [math.log(w) if w > 0 else -math.inf for w in stream_weights]
        bias = queries.new_tensor(weights).repeat_interleave(
            torch.tensor([_tokens(s).shape[1] for s in k], device=queries.device)
        )
    if window is None:
        out, lse = _attend(queries, keys, values, bias, scale, return_lse)
    else:
        out = torch.zeros_like(queries)
        lse = queries.new_full(queries.shape[:-1], -math.inf, dtype=torch.float32) if return_lse else None
        query_frame, key_frame = frame_of_tokens(q, frames), frame_of_tokens(k, frames)
        pieces = []
        for frame in query_frame.unique().tolist():
            rows = (query_frame == frame).nonzero()[:, 0]
            if frame < 0:  # a shared query sees everything
                columns = torch.arange(len(key_frame))
            else:
                seen = [other for other in key_frame.unique().tolist()
                        if other < 0 or abs(other - frame) <= window or other in reference_frames]  # fmt: skip
                columns = torch.isin(key_frame, torch.tensor(seen)).nonzero()[:, 0]
            rows, columns = rows.to(queries.device), columns.to(queries.device)
            part = _attend(
                queries[:, :, rows], keys[:, :, columns], values[:, :, columns],
                None if bias is None else bias[columns], scale, return_lse,
            )  # fmt: skip
            pieces.append((rows, *part))
        order = torch.cat([rows for rows, _, _ in pieces]).argsort()
        out = torch.cat([out for _, out, _ in pieces], 2)[:, :, order]
        lse = torch.cat([lse for _, _, lse in pieces], 2)[:, :, order] if return_lse else None
    lengths = [_tokens(s).shape[1] for s in q]
    outputs = [part.reshape(s.shape) for part, s in zip(out.transpose(1, 2).split(lengths, 1), q, strict=True)]
    if not return_lse:
        return outputs, None
    return outputs, [p.reshape(s.shape[:-1]) for p, s in zip(lse.transpose(1, 2).split(lengths, 1), q, strict=True)]


def _attend(queries, keys, values, bias, scale, return_lse):
    """[B, H, Nq, d] x [B, H, Nk, d] -> output, and the LSE [B, H, Nq] if asked for."""
    if keys.shape[2] == 0 or queries.shape[2] == 0 or (bias is not None and bool((bias == -math.inf).all())):
        empty = queries.new_full(queries.shape[:-1], -math.inf, dtype=torch.float32)
        return queries * 0.0, empty if return_lse else None
    mask = None if bias is None else bias[None, None, None].expand(1, 1, queries.shape[2], -1)
    out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scale)
    if not return_lse:
        return out, None
    with torch.no_grad():
        if queries.device.type == "cpu":
            attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
            return out, attend(queries, keys, values, attn_mask=mask, scale=scale)[1].float()
        scores = (queries.float() @ keys.float().transpose(-1, -2)) * scale
        return out, torch.logsumexp(scores if bias is None else scores + bias, -1)


def _triton(q, k, v, scale, frames, window, reference_frames, stream_weights, return_lse):
    raise NotImplementedError


def _tokens(stream: torch.Tensor) -> torch.Tensor:
    return stream.flatten(1, 2) if stream.dim() == 5 else stream
