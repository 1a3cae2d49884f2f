"""Occlusion from flow in both directions."""

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
    for name, flow in (("flow_fw", flow_fw), ("flow_bw", flow_bw)):
        check_flow("forward_backward_consistency", name, flow)
    if flow_fw.shape != flow_bw.shape:
        raise ValueError(
            f"forward_backward_consistency: both flows need one shape, got {tuple(flow_fw.shape)} and "
            f"{tuple(flow_bw.shape)}"
        )
    returned, inside = warp(flow_bw, flow_fw, mask=True, backend=backend)
    gap = (flow_fw + returned).square().sum(-3)
    allowed = alpha1 * (flow_fw.square().sum(-3) + returned.square().sum(-3)) + alpha2
    return ~((gap < allowed) & inside)  # not >=: a NaN is occluded
