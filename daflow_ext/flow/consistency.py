"""Occlusion and confidence from flow in both directions."""

import torch

from .warp import check_flow, warp


def forward_backward_consistency(
    flow_fw: torch.Tensor,
    flow_bw: torch.Tensor,
    alpha1: float = 0.01,
    alpha2: float = 0.5,
    *,
    backend: str = "auto",
) -> torch.Tensor:
    """Which pixels of image1 are occluded in image2 (or left the picture): going there and back does not return.

    With b' = flow_bw(p + flow_fw(p)), a pixel p is visible where
    |flow_fw + b'|^2 < alpha1 (|flow_fw|^2 + |b'|^2) + alpha2 and p + flow_fw(p) lies inside image2. Swap the arguments
    for the occlusions of image2. A non-finite vector on the way counts as occluded.

    Shapes: both [2, H, W] or [B, 2, H, W] -> bool [H, W] or [B, H, W], True = occluded.
    Units: pixels; alpha2 in square pixels.
    Raises:
        ValueError: shapes that do not fit.
    Source: Sundaram, Brox & Keutzer (ECCV 2010), equation 5; the same constants in UnFlow (Meister et al. 2018).
    """
    gap, allowed, inside = _gap("forward_backward_consistency", flow_fw, flow_bw, alpha1, alpha2, backend)
    return ~((gap < allowed) & inside)  # not >=: a NaN is occluded


def forward_backward_confidence(
    flow_fw: torch.Tensor,
    flow_bw: torch.Tensor,
    alpha1: float = 0.01,
    alpha2: float = 0.5,
    *,
    backend: str = "auto",
) -> torch.Tensor:
    """How well going there and back returns: exp(-gap / allowed), the two sides of the test of
    :func:`forward_backward_consistency`.

    1 where it returns exactly, below 1/e where that function calls a pixel occluded, 0 where a pixel leaves the
    picture or a vector on the way is not finite.

    Shapes: both [2, H, W] or [B, 2, H, W] -> float32 [H, W] or [B, H, W] in [0, 1].
    Units: pixels; alpha2 in square pixels.
    Raises:
        ValueError: shapes that do not fit.
    """
    gap, allowed, inside = _gap("forward_backward_confidence", flow_fw, flow_bw, alpha1, alpha2, backend)
    return torch.where(inside, torch.exp(-gap / allowed), 0.0).nan_to_num(0.0)


def _gap(
    what: str, flow_fw: torch.Tensor, flow_bw: torch.Tensor, alpha1: float, alpha2: float, backend: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """|flow_fw + b'|^2, what of it is allowed, and whether p + flow_fw(p) lies inside image2."""
    for name, flow in (("flow_fw", flow_fw), ("flow_bw", flow_bw)):
        check_flow(what, name, flow)
    if flow_fw.shape != flow_bw.shape:
        raise ValueError(f"{what}: both flows need one shape, got {tuple(flow_fw.shape)} and {tuple(flow_bw.shape)}")
    returned, inside = warp(flow_bw, flow_fw, mask=True, backend=backend)
    gap = (flow_fw + returned).square().sum(-3)
    allowed = alpha1 * (flow_fw.square().sum(-3) + returned.square().sum(-3)) + alpha2
    return gap, allowed, inside
