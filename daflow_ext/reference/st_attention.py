"""Reference of ``st_attention``: all streams joined, the whole score matrix written out."""

import math
from collections.abc import Sequence

import torch


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
) -> list[torch.Tensor] | tuple[list[torch.Tensor], list[torch.Tensor]]:
    """softmax(q k^T * scale + log multiplicity) v over the tokens of all frames and streams; see ops.st_attention.

    ``score_bound`` changes nothing here.
    """
    scale = q[0].shape[-1] ** -0.5 if scale is None else scale
    accumulate = torch.float64 if q[0].dtype == torch.float64 else torch.float32
    queries, keys, values = (torch.cat([_tokens(s) for s in streams], 1).to(accumulate) for streams in (q, k, v))
    scores = torch.einsum("bihd,bjhd->bhij", queries, keys) * scale  # [B, H, Nq, Nk]
    if stream_weights is not None:
        lengths = torch.tensor([_tokens(s).shape[1] for s in k], device=scores.device)
        weights = torch.tensor([math.log(w) if w > 0 else -math.inf for w in stream_weights], dtype=accumulate)
        scores = scores + weights.to(scores.device).repeat_interleave(lengths)
    if window is not None:
        visible = frame_mask(frame_of_tokens(q, frames), frame_of_tokens(k, frames), window, reference_frames)
        scores = scores.masked_fill(~visible.to(scores.device), -math.inf)
    dead = (scores == -math.inf).all(-1, keepdim=True)  # rows that see nothing
    weights = scores.masked_fill(dead, 0.0).softmax(-1).masked_fill(dead, 0.0)
    joined = torch.einsum("bhij,bjhd->bihd", weights, values).to(q[0].dtype)
    sizes = [_tokens(s).shape[1] for s in q]
    outputs = [part.reshape(*s.shape[:-1], v[0].shape[-1]) for part, s in zip(joined.split(sizes, 1), q, strict=True)]
    if not return_lse:
        return outputs
    lse = torch.logsumexp(scores.detach(), -1)  # [B, H, Nq]; -inf for dead rows
    parts = lse.transpose(1, 2).split(sizes, 1)
    return outputs, [part.reshape(s.shape[:-1]) for part, s in zip(parts, q, strict=True)]


def frame_of_tokens(streams: Sequence[torch.Tensor], frames: int | None) -> torch.Tensor:
    """Frame index of every token of the joined streams; -1 for tokens that belong to every frame."""
    parts = []
    for stream in streams:
        if stream.dim() == 5 and stream.shape[1] > 1:
            parts.append(torch.arange(stream.shape[1]).repeat_interleave(stream.shape[2]))
        elif stream.dim() == 4 and frames is not None and frames > 1:
            parts.append(torch.arange(frames).repeat_interleave(stream.shape[1] // frames))
        else:
            parts.append(torch.full((_tokens(stream).shape[1],), -1))
    return torch.cat(parts)


def frame_mask(
    query_frame: torch.Tensor, key_frame: torch.Tensor, window: int, reference_frames: Sequence[int]
) -> torch.Tensor:
    """True where a query may see a key: frames at most ``window`` apart, reference frames, and shared tokens."""
    near = (query_frame[:, None] - key_frame[None]).abs() <= window
    shared = (query_frame < 0)[:, None] | (key_frame < 0)[None]
    reference = torch.isin(key_frame, torch.tensor(list(reference_frames), dtype=key_frame.dtype))[None]
    return near | shared | reference


def _tokens(stream: torch.Tensor) -> torch.Tensor:
    """[B, F, T, H, d] or [B, L, H, d] -> [B, L, H, d]."""
    return stream.flatten(1, 2) if stream.dim() == 5 else stream
