"""Every score of the field with its unit and its mean in the name.

Outlier rates are percent of *bad* pixels. ``..._per_pixel`` is the mean over all pixels of a data set,
``..._per_image`` the mean of its images' means; :data:`PROTOCOLS` says which of the two a benchmark publishes.
"""

from .errors import AGGREGATES, PixelErrors, epe, fl_all, outlier_rate, pixel_errors, wauc
from .image import lpips, psnr, ssim
from .protocols import PROTOCOLS, Protocol, min4_errors, subsample
from .tally import COMPLEMENTS, METRICS, SPEED_BINS, Tally, combine, image_tallies, strata, tally
from .unsupervised import (
    ROBUSTNESS,
    forward_backward_error,
    mean_over_corruptions,
    occlusion_and_boundaries,
    robustness,
    robustness_epe,
    warping_error,
)

__all__ = [
    "AGGREGATES",
    "COMPLEMENTS",
    "METRICS",
    "PROTOCOLS",
    "ROBUSTNESS",
    "SPEED_BINS",
    "PixelErrors",
    "Protocol",
    "Tally",
    "combine",
    "epe",
    "fl_all",
    "forward_backward_error",
    "image_tallies",
    "lpips",
    "mean_over_corruptions",
    "min4_errors",
    "occlusion_and_boundaries",
    "outlier_rate",
    "pixel_errors",
    "psnr",
    "robustness",
    "robustness_epe",
    "ssim",
    "strata",
    "subsample",
    "tally",
    "warping_error",
    "wauc",
]
