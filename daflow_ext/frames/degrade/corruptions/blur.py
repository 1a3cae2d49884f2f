"""Blurs. All but ``glass_blur`` are symmetric about every pixel, so that nothing moves."""

import math

import cv2
import numpy as np

from ..resample import Size
from ..schedule import PARAMETERS, random_stream
from .registry import Filter, at, corruption, unit
from .texture import disk_kernel, filtered, line_kernel

ZOOMS = 17


@corruption("blur")
def gaussian_blur(size: Size, severity: int, seed: int) -> Filter:
    """Gaussian blur."""
    sigma = max(at(severity, (1, 2, 3, 4, 6)) * unit(size), 0.3)
    return lambda frame, index: cv2.GaussianBlur(frame, (0, 0), sigma)


@corruption("blur")
def defocus_blur(size: Size, severity: int, seed: int) -> Filter:
    """A lens out of focus: a disk with a soft edge."""
    radius, sigma = at(severity, ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)))
    kernel = disk_kernel(radius * unit(size), sigma)
    return lambda frame, index: filtered(frame, kernel)


@corruption("blur")
def motion_blur(size: Size, severity: int, seed: int) -> Filter:
    """A shaken camera: a line through each pixel, in one direction for the whole clip."""
    radius, sigma = at(severity, ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)))
    angle = math.radians(random_stream(seed, PARAMETERS).uniform(-45, 45))
    kernel = line_kernel(radius * unit(size), sigma * unit(size), angle)
    return lambda frame, index: filtered(frame, kernel)


@corruption("blur")
def zoom_blur(size: Size, severity: int, seed: int) -> Filter:
    """A zoom while the shutter is open: the mean of enlarged and reduced frames, balanced so that nothing moves."""
    spread = at(severity, (0.11, 0.16, 0.21, 0.26, 0.31)) / 2
    centre = np.array([(size[1] - 1) / 2, (size[0] - 1) / 2])
    # the factors are sampling steps, symmetric about 1: their mean position is the pixel itself
    factors = 1 + spread * np.linspace(-1, 1, ZOOMS)

    def apply(frame: np.ndarray, index: int) -> np.ndarray:
        total = np.zeros_like(frame)
        for factor in factors:
            matrix = np.column_stack([np.eye(2) * factor, centre * (1 - factor)])
            total += cv2.warpAffine(
                frame,
                matrix,
                size[::-1],
                flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                borderMode=cv2.BORDER_REPLICATE,
            )
        return total / ZOOMS

    return apply


@corruption("blur", moves_pixels=True)
def glass_blur(size: Size, severity: int, seed: int) -> Filter:
    """Frosted glass before the lens: pixels trade places with near ones, the same way in every frame."""
    sigma, reach, rounds = at(severity, ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2)))
    sigma, reach = max(sigma * unit(size), 0.3), max(round(reach * unit(size)), 1)
    rng = random_stream(seed, PARAMETERS)
    rows, columns = np.mgrid[: size[0], : size[1]]
    for _ in range(rounds):
        step = rng.integers(-reach, reach, size=(2, *size), endpoint=True)
        y = np.clip(np.arange(size[0])[:, None] + step[0], 0, size[0] - 1)
        x = np.clip(np.arange(size[1])[None] + step[1], 0, size[1] - 1)
        rows, columns = rows[y, x], columns[y, x]

    def apply(frame: np.ndarray, index: int) -> np.ndarray:
        return cv2.GaussianBlur(cv2.GaussianBlur(frame, (0, 0), sigma)[rows, columns], (0, 0), sigma)

    return apply
