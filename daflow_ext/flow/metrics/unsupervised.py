"""Scores without ground truth: warping error, forward-backward error, robustness to corruption."""

from collections.abc import Mapping

import torch

from ..warp import warp
from .errors import epe as _epe
from .errors import fl_all, outlier_rate

ROBUSTNESS = ("robustness_epe", "robustness_1px", "robustness_fl")
"""RobustSpring's scores between two predictions."""


def forward_backward_error(
    flow_forward: torch.Tensor, flow_backward: torch.Tensor, valid: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean length of f(p) + b(p + f(p)) in pixels, over ``valid`` pixels; None: all whose target lies in the image.

    Shapes: both flows [B, 2, H, W], valid bool [B, H, W]. NaN where no pixel counts.
    """
    if flow_forward.dim() != 4 or flow_forward.shape[1] != 2 or flow_forward.shape != flow_backward.shape:
        raise ValueError(
            f"both flows must be [B, 2, H, W], got {list(flow_forward.shape)} and {list(flow_backward.shape)}"
        )
    returned, inside = warp(flow_backward, flow_forward, padding="border", mask=True)
    length = torch.linalg.vector_norm((flow_forward + returned).double(), dim=1)
    return length[inside if valid is None else valid].mean()


def occlusion_and_boundaries(flow_forward: torch.Tensor, flow_backward: torch.Tensor) -> torch.Tensor:
    """Pixels that the warping error leaves out: occluded ones and motion boundaries.

    With F the forward flow and W(B) the backward flow warped onto it: |F + W(B)|^2 > 0.01 (|F|^2 + |W(B)|^2) + 0.5, or
    |grad u|^2 + |grad v|^2 > 0.01 |F|^2 + 0.002 with one-sided differences.

    Shapes: flows [B, 2, H, W] -> bool [B, H, W].
    Source: Ruder et al. (GCPR 2016) as used by Lai et al. (ECCV 2018).
    """
    warped = warp(flow_backward, flow_forward, padding="border")
    squared = flow_forward.square().sum(1)
    occluded = (flow_forward + warped).square().sum(1) > 0.01 * (squared + warped.square().sum(1)) + 0.5
    gradient = torch.zeros_like(squared)
    gradient[..., :-1] += flow_forward.diff(dim=-1).square().sum(1)
    gradient[..., :-1, :] += flow_forward.diff(dim=-2).square().sum(1)
    return occluded | (gradient > 0.01 * squared + 0.002)


def warping_error(frames: torch.Tensor, flow: torch.Tensor, occluded: torch.Tensor) -> torch.Tensor:
    """Temporal consistency of a video: mean squared difference of each frame and the next one warped back onto it.

    Flow and mask come from the reference video, once for all compared videos. The mean runs over the visible pixels of
    a pair (a pair without any adds 0, as in the original), then over pairs. Printed times 1e3 by convention.

    Shapes:
        frames: [T, 3, H, W], RGB in [0, 255]. flow: [T-1, 2, H, W] from frame t to t+1. occluded: bool [T-1, H, W],
        from :func:`occlusion_and_boundaries`.
    Units: colours are divided by 255 first.
    Source: Lai et al., Learning Blind Video Temporal Consistency, ECCV 2018.
    """
    pairs = len(frames) - 1
    if pairs < 1 or flow.shape[0] != pairs or occluded.shape != (pairs, *frames.shape[-2:]):
        raise ValueError(
            f"{len(frames)} frames need flow and occluded for {len(frames) - 1} pairs of at least 1, "
            f"got {list(flow.shape)} and {list(occluded.shape)}"
        )
    frames = frames.float() / 255
    difference = (frames[:-1] - warp(frames[1:], flow, padding="border")).double().square()
    visible = ~occluded[:, None].expand_as(difference)
    counts = visible.sum((1, 2, 3))
    sums = (difference * visible).sum((1, 2, 3))
    # no visible pixel: the original sums a zeroed difference, so such a pair adds nothing
    return (sums / torch.where(counts > 0, counts, difference[0].numel())).mean()


def robustness(flow_clean: torch.Tensor, flow_corrupted: torch.Tensor) -> dict[str, float]:
    """How far corruption of the input moves a prediction: RobustSpring's scores between the two predictions.

    ``robustness_epe`` in pixels (the rCRE of KITTI-FC), ``robustness_1px`` and ``robustness_fl`` in percent, over all
    pixels; lower is steadier. No ground truth enters, a constant predictor is perfectly robust: report it beside
    accuracy.

    Shapes: both [..., 2, H, W].
    Source: RobustSpring (Schmalfuss et al., 2025).
    """
    return {
        "robustness_epe": _epe(flow_corrupted, flow_clean).item(),
        "robustness_1px": outlier_rate(flow_corrupted, flow_clean, 1.0).item(),
        "robustness_fl": fl_all(flow_corrupted, flow_clean).item(),
    }


def robustness_epe(flow_clean: torch.Tensor, flow_corrupted: torch.Tensor) -> float:
    """``R_EPE`` of RobustSpring, ``rCRE`` of KITTI-FC: EPE between the predictions on clean and corrupted input."""
    return _epe(flow_corrupted, flow_clean).item()


def mean_over_corruptions(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """RobustSpring's summary: the plain mean of :func:`robustness` over corruptions."""
    if not scores:
        raise ValueError("no corruption was scored")
    return {name: sum(row[name] for row in scores.values()) / len(scores) for name in ROBUSTNESS}
