"""Reference of ``softargmax_flow``: the whole score matrix, softmax, expected position."""

import torch

DEFAULT_LOCAL_RADIUS = 4


def softargmax_flow(
    query: torch.Tensor,
    key: torch.Tensor,
    grid_size: tuple[int, int],
    *,
    temperature: float = 1.0,
    radius: int | None = None,
    mode: str = "global",
    details: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """E[position of key under softmax(q k^T / temperature)] - own position; see ops.softargmax_flow."""
    height, width = grid_size
    accumulate = torch.float64 if query.dtype == torch.float64 else torch.float32
    scores = torch.einsum("bic,bjc->bij", query.to(accumulate), key.to(accumulate)) / temperature
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    cells = torch.stack((x.flatten(), y.flatten()), -1).to(query.device)  # [T, 2]
    if mode == "local":
        centre = cells[scores.argmax(-1)]  # [B, T, 2]
        radius = DEFAULT_LOCAL_RADIUS if radius is None else radius
    else:
        centre = cells.expand(query.shape[0], -1, -1)
    if radius is not None:
        outside = ((cells - centre[:, :, None]).abs() > radius).any(-1)
        scores = scores.masked_fill(outside, -torch.inf)
    lse = torch.logsumexp(scores, -1)
    probability = (scores - lse[..., None]).exp()
    expected = probability @ cells.to(accumulate)
    flow = _grid(expected - cells, height, width)
    if not details:
        return flow
    entropy = lse - torch.where(probability > 0, probability * scores, 0.0).sum(-1)
    extras = (probability.amax(-1), entropy, lse)
    return flow, *(_grid(extra.detach().float()[..., None], height, width)[:, 0] for extra in extras)


def _grid(rows: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """[B, h*w, n] -> [B, n, h, w]."""
    return rows.transpose(1, 2).unflatten(-1, (height, width))
