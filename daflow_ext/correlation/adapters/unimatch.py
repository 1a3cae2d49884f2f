"""unimatch and gmflow (autonomousvision/unimatch, haofeixu/gmflow): replace ``local_correlation_with_flow`` of
``unimatch/matching.py`` by this one.
"""

from typing import Any

import torch

from ... import ops


def local_correlation_with_flow(
    feature0: torch.Tensor,
    feature1: torch.Tensor,
    flow: torch.Tensor,
    local_radius: int,
    padding_mode: str = "zeros",
    dilation: int = 1,
    *,
    backend: str = "auto",
) -> torch.Tensor:
    """Correlation of every pixel of feature0 with a window of feature1 around where the flow points.

    Channel ``(dy + r) * n + (dx + r)`` with n = 2 r + 1 is ``<feature0[p], feature1[p + flow + dilation * (dx, dy)]>``
    over sqrt(C), bilinear: the slow window index moves y, unlike RAFT.

    Shapes:
        feature0, feature1: [B, C, H, W]. flow: [B, 2, H, W] float32. Returns [B, n*n, H, W] in the dtype of feature0.
    Units:
        flow in pixels of the features, channel 0 = x to the right, channel 1 = y down.
    Args:
        local_radius: r.
        padding_mode: ``"zeros"`` (a tap outside counts zero) or ``"border"`` (positions are moved to the edge).
        dilation: distance of neighbouring window positions.
    Gradients: feature0, feature1, flow.
    Raises:
        ValueError, TypeError: another padding_mode or radius; shapes, dtypes or devices that disagree.
    Source: UniMatch (Xu et al., TPAMI 2023, arXiv 2211.05783).
    """
    if padding_mode not in ("zeros", "border"):
        raise ValueError(f"local_correlation_with_flow: padding_mode must be 'zeros' or 'border', got {padding_mode!r}")
    if not isinstance(local_radius, int) or local_radius < 0:
        raise ValueError(f"local_correlation_with_flow: local_radius must be an integer >= 0, got {local_radius!r}")
    options: dict[str, Any] = {"out_dtype": feature0.dtype, "backend": backend}
    coords = flow + _pixel_grid(flow)
    if padding_mode == "zeros" and dilation == 1:
        return ops.corr_lookup(feature0, [feature1], coords, local_radius, order="yx", **options)

    steps = torch.arange(-local_radius, local_radius + 1, dtype=coords.dtype, device=coords.device) * dilation
    offsets = torch.cartesian_prod(steps, steps).flip(1)  # [n*n, (x, y)], y slow
    centres = coords[:, None] + offsets[None, :, :, None, None]  # [B, n*n, 2, H, W]
    if padding_mode == "border":
        height, width = feature1.shape[-2:]
        x, y = centres.unbind(2)
        centres = torch.stack([x.clamp(0, width - 1), y.clamp(0, height - 1)], dim=2)
    return ops.corr_lookup(feature0, [feature1], centres, 0, **options).squeeze(2)


def _pixel_grid(flow: torch.Tensor) -> torch.Tensor:
    """[2, H, W]: x, then y."""
    columns, rows = (torch.arange(size, dtype=flow.dtype, device=flow.device) for size in flow.shape[:-3:-1])
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x, y])
