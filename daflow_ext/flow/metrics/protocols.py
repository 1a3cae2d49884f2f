"""How each benchmark turns a prediction and its truth into scores."""

import dataclasses
from collections.abc import Mapping

import torch

from .errors import PixelErrors, check_finite, pixel_errors, valid_mask
from .tally import Tally, image_tallies


@dataclasses.dataclass(frozen=True)
class Protocol:
    """A scoring rule.

    Attributes:
        name: what reports call it.
        note: one line for the reader of a report.
        samples: true vectors per image pixel along each axis (Spring's truth: 2 at twice the size; else 1).
        strict: outliers are error > threshold, else error >= threshold (:func:`outlier_rate`).
        aggregate: the official mean of the errors, "pixel" or "image"; ``pixel_metrics`` name the exceptions.
    """

    name: str
    note: str
    samples: int = 1
    strict: bool = True
    aggregate: str = "image"
    pixel_metrics: tuple[str, ...] = ()

    def aggregate_of(self, metric: str) -> str:
        """The mean that this benchmark publishes for ``metric``."""
        return "pixel" if metric in self.pixel_metrics else self.aggregate

    def errors(self, flow: torch.Tensor, flow_gt: torch.Tensor, valid: torch.Tensor | None = None) -> PixelErrors:
        """Pixel errors under this rule; ``flow_gt`` has ``samples`` times the height and width of ``flow``."""
        return pixel_errors(flow, flow_gt, valid) if self.samples == 1 else min4_errors(flow, flow_gt, valid)

    def score(
        self,
        flow: torch.Tensor,
        flow_gt: torch.Tensor,
        valid: torch.Tensor | None = None,
        masks: Mapping[str, torch.Tensor] | None = None,
    ) -> dict[str, Tally]:
        """Tallies of one image, flow [2, H, W]; see :func:`image_tallies`."""
        return image_tallies(self.errors(flow, flow_gt, valid), masks, strict=self.strict)


PROTOCOLS = {
    rule.name: rule
    for rule in (
        Protocol("dense", "mean over images; outliers as 100 % minus the inliers of RAFT's scripts", strict=False),
        Protocol("sintel", "all pixels of equal images; outliers as in SEA-RAFT's scripts", strict=False),
        Protocol("kitti", "EPE is the mean of image means, Fl-all a share of all pixels", pixel_metrics=("fl_all",)),
        Protocol("spring_subsample", "truth [::2, ::2], mean of image means, as in papers' code", strict=False),
        Protocol("spring_min4", "best of the 2x2 true vectors, all pixels alike, as the server", 2, aggregate="pixel"),
    )
}


def subsample(flow_gt: torch.Tensor) -> torch.Tensor:
    """The first of Spring's 2x2 true vectors of a pixel: [..., 2H, 2W] -> [..., H, W]; they are in image pixels."""
    return flow_gt[..., ::2, ::2]


def min4_errors(flow: torch.Tensor, flow_gt: torch.Tensor, valid: torch.Tensor | None = None) -> PixelErrors:
    """Spring's official error: the smallest over the 2x2 true vectors of a pixel.

    A pixel counts when all four vectors are finite. Its speed bin is decided by their mean length, the 5 % of Fl-all by
    the largest.

    Shapes: flow [..., 2, H, W], flow_gt [..., 2, 2H, 2W], valid [..., H, W] or None.
    Raises:
        ValueError: other sizes, or a prediction that is not finite where the truth is.
    Source: evaluation code of the Spring benchmark (Mehl et al., CVPR 2023).
    """
    height, width = flow.shape[-2:]
    if flow.shape[-3] != 2 or flow_gt.shape != (*flow.shape[:-2], 2 * height, 2 * width):
        raise ValueError(
            f"flow [..., 2, H, W] needs flow_gt [..., 2, 2H, 2W], got {list(flow.shape)} and {list(flow_gt.shape)}"
        )
    samples = torch.stack([flow_gt[..., y::2, x::2] for y in (0, 1) for x in (0, 1)]).double()  # [4, ..., 2, H, W]
    finite = samples.isfinite().all(-3).all(0)
    mask = finite if valid is None else valid_mask(valid, finite) & finite
    check_finite(flow, mask)
    lengths = torch.linalg.vector_norm(samples, dim=-3)
    best = torch.linalg.vector_norm(flow.double() - samples, dim=-3).amin(0)
    zero = best.new_zeros(())
    return PixelErrors(
        torch.where(mask, best, zero),
        mask,
        torch.where(mask, lengths.mean(0), zero),
        torch.where(mask, lengths.amax(0), zero),
    )
