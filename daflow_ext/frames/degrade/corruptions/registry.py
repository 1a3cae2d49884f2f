"""The corruption families by name; a family is a function ``make(size, severity, seed)`` that gives a frame filter."""

import dataclasses
import numbers
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ..layout import Frames, Video, check_frame, map_video, seeds_of
from ..resample import Size

SEVERITIES = (1, 2, 3, 4, 5)
GROUPS = ("color", "blur", "noise", "quality", "weather")

# Lengths in pixels are stated for frames whose shorter side has this many, and grow with the frame.
REFERENCE_SIDE = 448

Filter = Callable[[np.ndarray, int], np.ndarray]  # (float32 [H, W, 3] in 0..1, frame number) -> the same kind
Maker = Callable[[Size, int, int], Filter]


@dataclasses.dataclass(frozen=True)
class Corruption:
    """One family. ``moves_pixels``: it displaces content locally, by design, so the clean flow is not its flow."""

    name: str
    group: str
    summary: str
    moves_pixels: bool
    make: Maker


CORRUPTIONS: dict[str, Corruption] = {}


def corruption(group: str, *, moves_pixels: bool = False) -> Callable[[Maker], Maker]:
    """Register a maker under its own name; the first line of its docstring is the summary."""

    def register(make: Maker) -> Maker:
        summary = (make.__doc__ or "").split("\n")[0]
        CORRUPTIONS[make.__name__] = Corruption(make.__name__, group, summary, moves_pixels, make)
        return make

    return register


def at(severity: int, values: Sequence) -> Any:
    """The value that belongs to a severity 1..5."""
    return values[severity - 1]


def unit(size: Size) -> float:
    """Pixels per reference pixel for frames of this size."""
    return min(size) / REFERENCE_SIDE


def check_corruption(name: str, severity: int) -> Corruption:
    """The family ``name``; ValueError when it or the severity does not exist."""
    if name not in CORRUPTIONS:
        raise ValueError(f"no corruption {name!r}; expected one of {', '.join(sorted(CORRUPTIONS))}")
    if not isinstance(severity, numbers.Integral) or severity not in SEVERITIES:
        raise ValueError(f"severity must be a whole number from 1 (mild) to 5 (worst), got {severity!r}")
    return CORRUPTIONS[name]


def corrupt_frames(frames: Iterable[np.ndarray], name: str, severity: int = 3, seed: int = 0) -> Iterator[np.ndarray]:
    """:func:`corrupt` frame by frame, for clips of any length. Shapes: uint8 [H, W, 3] in and out."""
    family = check_corruption(name, severity)
    return _filtered(frames, family, severity, seeds_of(seed, 1)[0])


def _filtered(frames: Iterable[np.ndarray], family: Corruption, severity: int, seed: int) -> Frames:
    size: tuple[int, ...] = ()
    apply = None
    for index, frame in enumerate(frames):
        if apply is None:
            size = check_frame(frame).shape[:2]
            apply = family.make((size[0], size[1]), severity, seed)
        if check_frame(frame).shape[:2] != size:
            raise ValueError(f"frame {index} is {frame.shape[1]}x{frame.shape[0]} pixels, the first one {size[::-1]}")
        result = apply(frame.astype(np.float32) / 255, index)
        yield np.rint(np.clip(result, 0, 1) * 255).astype(np.uint8)


def corrupt(video: Video, name: str, severity: int = 3, seed: int | Sequence[int] = 0) -> Video:
    """One of the 20 corruption families of RobustSpring, consistent over time, at the size of the video.

    Lens effects stay where they are, fog drifts, rain and snow fall, noise is fresh in every frame. No depth is known,
    so weather lies in front of everything.

    Args:
        video: as in :func:`daflow_ext.frames.degrade.degrade`.
        name: a key of ``CORRUPTIONS``.
        severity: 1 (mild) .. 5 (worst).
    Shapes: type, dtype, shape and device of ``video``; whole grey levels.
    Raises:
        TypeError, ValueError: another layout, an unknown name, or a severity outside 1..5.
    Source: names from RobustSpring (arXiv 2505.09368); strengths of the ImageNet-C list (Hendrycks & Dietterich, ICLR
        2019, arXiv 1903.12261), where a family is on it. The images are not those of either benchmark.
    """
    check_corruption(name, severity)
    return map_video(video, seed, lambda frames, one: corrupt_frames(frames, name, severity, one))
