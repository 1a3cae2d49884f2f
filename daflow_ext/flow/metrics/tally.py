"""Sums of scores that can be added up over images and then averaged per pixel or per image."""

import dataclasses
from collections.abc import Iterable, Mapping

import torch

from .errors import PixelErrors, exceeds, fl_outliers, wauc_score

METRICS = ("epe", "outlier_1px", "outlier_3px", "outlier_5px", "fl_all", "wauc")
PERCENT = frozenset(METRICS) - {"epe"}

SPEED_BINS = {"s0-10": (0.0, 10.0), "s10-40": (10.0, 40.0), "s40+": (40.0, float("inf"))}
"""Half-open intervals of the true length in pixels."""

COMPLEMENTS = {
    "occluded": "non_occluded",
    "unmatched": "matched",
    "non_rigid": "rigid",
    "high_detail": "low_detail",
    "sky": "not_sky",
}
"""Name of the pixels outside a named mask; other masks get ``not_<name>``."""


@dataclasses.dataclass(frozen=True)
class Tally:
    """Sums over the ``count`` pixels of one stratum of one image (or of many); outliers are counts, WAUC in [0, 1]."""

    count: int
    sums: Mapping[str, float]

    def mean(self) -> dict[str, float]:
        """Each metric in its unit (pixels, percent); NaN without pixels."""
        scale = {name: 100.0 if name in PERCENT else 1.0 for name in METRICS}
        return {name: scale[name] * self.sums[name] / self.count if self.count else float("nan") for name in METRICS}

    def as_list(self) -> list[float]:
        """``[count, *sums]`` in the order of :data:`METRICS`, for files."""
        return [self.count, *(self.sums[name] for name in METRICS)]

    @classmethod
    def from_list(cls, values: list[float]) -> "Tally":
        if len(values) != len(METRICS) + 1:
            raise ValueError(f"a tally has {len(METRICS) + 1} numbers, got {len(values)}")
        return cls(int(values[0]), dict(zip(METRICS, map(float, values[1:]), strict=True)))


def tally(errors: PixelErrors, inside: torch.Tensor, *, strict: bool = True) -> Tally:
    """Sums over the valid pixels of ``errors`` (one image, [H, W]) that lie ``inside`` the mask."""
    chosen = errors.valid & inside
    distance = errors.epe[chosen]
    sums = {
        "epe": distance.sum(),
        "outlier_1px": exceeds(distance, 1.0, strict).sum(),
        "outlier_3px": exceeds(distance, 3.0, strict).sum(),
        "outlier_5px": exceeds(distance, 5.0, strict).sum(),
        "fl_all": (fl_outliers(errors) & chosen).sum(),
        "wauc": wauc_score(distance).sum(),
    }
    return Tally(int(chosen.sum()), {name: float(value) for name, value in sums.items()})


def strata(errors: PixelErrors, masks: Mapping[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """Named groups of pixels: all, the three speed bins, and every mask with its complement."""
    groups = {"all": torch.ones_like(errors.valid)}
    for name, (low, high) in SPEED_BINS.items():
        groups[name] = (errors.length >= low) & (errors.length < high)
    for name, mask in (masks or {}).items():
        if mask.shape != errors.valid.shape or mask.dtype != torch.bool:
            raise ValueError(
                f"the mask {name!r} must be bool {list(errors.valid.shape)}, got {mask.dtype} {list(mask.shape)}"
            )
        groups[name] = mask
        groups[COMPLEMENTS.get(name, f"not_{name}")] = ~mask
    return groups


def image_tallies(
    errors: PixelErrors, masks: Mapping[str, torch.Tensor] | None = None, *, strict: bool = True
) -> dict[str, Tally]:
    """The tally of every stratum of one image; shapes [H, W]."""
    if errors.epe.dim() != 2:
        raise ValueError(f"one image has errors [H, W], got {list(errors.epe.shape)}")
    return {name: tally(errors, inside, strict=strict) for name, inside in strata(errors, masks).items()}


def combine(tallies: Iterable[Tally]) -> dict[str, float]:
    """Scores of many images: ``<metric>_per_pixel`` (all pixels alike) and ``<metric>_per_image`` (all images alike).

    Images without a pixel in the stratum do not enter the mean over images.
    """
    used = [one for one in tallies if one.count]
    total = Tally(sum(one.count for one in used), {name: sum(one.sums[name] for one in used) for name in METRICS})
    per_pixel, means = total.mean(), [one.mean() for one in used]
    scores = {f"{name}_per_pixel": per_pixel[name] for name in METRICS}
    for name in METRICS:
        scores[f"{name}_per_image"] = sum(m[name] for m in means) / len(means) if means else float("nan")
    return scores
