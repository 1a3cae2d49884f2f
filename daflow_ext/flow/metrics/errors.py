"""Per-pixel end-point error and the scores made of it: EPE, outlier rates, Fl-all, WAUC."""

import dataclasses

import torch

AGGREGATES = ("pixel", "image")
"""The two means: over all pixels of a data set, over the means of its images."""
WAUC_STEPS = 100
WAUC_LIMIT = 5.0
"""Pixels: WAUC counts errors up to this length, in :data:`WAUC_STEPS` steps with linearly falling weights."""


@dataclasses.dataclass(frozen=True)
class PixelErrors:
    """What every score needs of a pixel; all tensors are [..., H, W].

    Attributes:
        epe: end-point error in pixels, float64, 0 where invalid.
        valid: bool, the pixels that count.
        length: length of the true vector, which decides the speed bin (mean of the samples where a pixel has several).
        fl_length: length whose 5 % Fl-all allows (largest of the samples where a pixel has several).
    """

    epe: torch.Tensor
    valid: torch.Tensor
    length: torch.Tensor
    fl_length: torch.Tensor


def pixel_errors(flow: torch.Tensor, flow_gt: torch.Tensor, valid: torch.Tensor | None = None) -> PixelErrors:
    """Error of every pixel, in float64.

    Shapes:
        flow, flow_gt: [..., 2, H, W]. valid: [..., H, W], bool or numbers of which >= 0.5 counts; None: every pixel
        whose truth is finite.
    Raises:
        ValueError: sizes that disagree, no valid pixel's truth or prediction may be non-finite.
    """
    if flow.dim() < 3 or flow.shape[-3] != 2 or flow.shape != flow_gt.shape:
        raise ValueError(f"flow and flow_gt must both be [..., 2, H, W], got {list(flow.shape)}, {list(flow_gt.shape)}")
    mask = valid_mask(valid, flow_gt.isfinite().all(-3))
    truth = flow_gt.double()
    if valid is not None and not truth.isfinite().all(-3)[mask].all():
        raise ValueError("flow_gt has non-finite values at pixels marked valid")
    check_finite(flow, mask)
    epe = _masked_length(flow.double() - truth, mask)
    length = _masked_length(truth, mask)
    return PixelErrors(epe, mask, length, length)


def valid_mask(valid: torch.Tensor | None, default: torch.Tensor) -> torch.Tensor:
    """``valid`` as bool of the shape of ``default``; ``default`` itself where None."""
    if valid is None:
        return default
    if valid.shape != default.shape:
        raise ValueError(f"valid must be {list(default.shape)}, got {list(valid.shape)}")
    return valid if valid.dtype == torch.bool else valid >= 0.5


def check_finite(flow: torch.Tensor, valid: torch.Tensor) -> None:
    """Refuse a prediction with NaN or Inf at a pixel that counts: no score of it would mean anything."""
    bad = int((~flow.isfinite().all(-3) & valid).sum())
    if bad:
        raise ValueError(f"the predicted flow is not finite at {bad} of {int(valid.sum())} valid pixels")


def _masked_length(vectors: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return torch.where(mask, torch.linalg.vector_norm(vectors, dim=-3), 0.0)


def epe(
    flow: torch.Tensor, flow_gt: torch.Tensor, valid: torch.Tensor | None = None, *, aggregate: str = "pixel"
) -> torch.Tensor:
    """Mean end-point error in pixels.

    ``aggregate="pixel"`` is the mean over all valid pixels of the batch, ``"image"`` the mean of the images' means
    (images without a valid pixel are left out). NaN where nothing is valid. Shapes as in :func:`pixel_errors`.
    """
    errors = pixel_errors(flow, flow_gt, valid)
    return _mean(errors.epe, errors.valid, aggregate)


def outlier_rate(
    flow: torch.Tensor,
    flow_gt: torch.Tensor,
    threshold: float,
    valid: torch.Tensor | None = None,
    *,
    aggregate: str = "pixel",
    strict: bool = True,
) -> torch.Tensor:
    """Percent of pixels whose error exceeds ``threshold`` pixels.

    ``strict=True`` counts error > threshold (Spring, KITTI); ``strict=False`` counts error >= threshold, which is the
    complement of the inlier rate "error < threshold" of RAFT and SEA-RAFT.
    """
    errors = pixel_errors(flow, flow_gt, valid)
    return 100 * _mean(exceeds(errors.epe, threshold, strict), errors.valid, aggregate)


def fl_all(
    flow: torch.Tensor, flow_gt: torch.Tensor, valid: torch.Tensor | None = None, *, aggregate: str = "pixel"
) -> torch.Tensor:
    """KITTI's outliers in percent: error > 3 pixels and > 5 % of the true length. KITTI aggregates over pixels."""
    errors = pixel_errors(flow, flow_gt, valid)
    return 100 * _mean(fl_outliers(errors), errors.valid, aggregate)


def wauc(
    flow: torch.Tensor, flow_gt: torch.Tensor, valid: torch.Tensor | None = None, *, aggregate: str = "pixel"
) -> torch.Tensor:
    """Weighted area under the curve of inlier rates, in percent (100 is best).

    100 sum_i w_i [error <= i / 20] / sum_i w_i averaged over pixels, with w_i = 1 - (i - 1) / 100 and i = 1 .. 100.
    Source: VIPER (Richter et al., ICCV 2017) as scored by the Spring benchmark.
    """
    errors = pixel_errors(flow, flow_gt, valid)
    return 100 * _mean(wauc_score(errors.epe), errors.valid, aggregate)


def exceeds(error: torch.Tensor, threshold: float, strict: bool = True) -> torch.Tensor:
    return error > threshold if strict else error >= threshold


def fl_outliers(errors: PixelErrors) -> torch.Tensor:
    return (errors.epe > 3) & (errors.epe > 0.05 * errors.fl_length)


def wauc_score(error: torch.Tensor) -> torch.Tensor:
    """What one pixel adds to WAUC, in [0, 1]: the share of the weights whose threshold its error does not exceed."""
    steps = torch.arange(1, WAUC_STEPS + 1, dtype=torch.float64, device=error.device)
    thresholds = steps / (WAUC_STEPS / WAUC_LIMIT)
    weights = 1 - (steps - 1) / WAUC_STEPS
    from_step = torch.cat([weights.flip(0).cumsum(0).flip(0), weights.new_zeros(1)]) / weights.sum()
    return from_step[torch.bucketize(error.double(), thresholds)]


def _mean(values: torch.Tensor, valid: torch.Tensor, aggregate: str) -> torch.Tensor:
    if aggregate not in AGGREGATES:
        raise ValueError(f"aggregate must be one of {', '.join(AGGREGATES)}, got {aggregate!r}")
    values = torch.where(valid, values.double(), 0.0)
    if aggregate == "pixel":
        return values.sum() / valid.sum()
    counts = valid.sum((-2, -1))
    means = values.sum((-2, -1)) / counts
    return means[counts > 0].mean()
