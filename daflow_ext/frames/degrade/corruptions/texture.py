"""Random fields and kernels that several families share."""

import math

import cv2
import numpy as np

from ..resample import Size


def fractal(size: Size, rng: np.random.Generator, exponent: float) -> np.ndarray:
    """A periodic random field with the amplitude spectrum 1 / f^exponent, scaled to 0..1. Shapes: float32 [H, W]."""
    frequency = np.hypot(np.fft.fftfreq(size[0])[:, None], np.fft.rfftfreq(size[1])[None])
    frequency[0, 0] = np.inf  # no mean
    white = np.fft.rfft2(rng.standard_normal(size))
    return normalised(np.fft.irfft2(white * frequency**-exponent, s=size))


def smooth(size: Size, rng: np.random.Generator, sigma: float) -> np.ndarray:
    """Blurred white noise of mean 0 and variance 1. Shapes: float32 [H, W]."""
    field = cv2.GaussianBlur(rng.standard_normal(size, dtype=np.float32), (0, 0), max(sigma, 0.3))
    return (field - field.mean()) / max(float(field.std()), 1e-6)


def normalised(field: np.ndarray) -> np.ndarray:
    """Scaled to 0..1; a constant field becomes 0."""
    low, high = float(field.min()), float(field.max())
    return ((field - low) / max(high - low, 1e-12)).astype(np.float32)


def drifted(field: np.ndarray, dx: float, dy: float) -> np.ndarray:
    """A periodic field moved by (dx, dy) pixels, right and down."""
    matrix = np.array([[1, 0, dx % field.shape[1]], [0, 1, dy % field.shape[0]]])
    return cv2.warpAffine(field, matrix, field.shape[::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)


def line_kernel(radius: float, sigma: float, angle: float) -> np.ndarray:
    """A straight line through the centre, Gaussian along it, of sum 1; point-symmetric, so it moves nothing.

    Units: pixels, radians from x towards y.
    """
    half = math.ceil(radius) + 1
    kernel = np.zeros((2 * half + 1, 2 * half + 1))
    steps = max(math.ceil(4 * radius), 1)
    for t in np.arange(-steps, steps + 1) * (radius / steps):
        x, y = half + t * math.cos(angle), half + t * math.sin(angle)
        left, top = math.floor(x), math.floor(y)
        weight = math.exp(-0.5 * (t / sigma) ** 2)
        for row, wy in ((top, top + 1 - y), (top + 1, y - top)):
            for column, wx in ((left, left + 1 - x), (left + 1, x - left)):
                if wx * wy > 0:
                    kernel[row, column] += weight * wx * wy
    return (kernel / kernel.sum()).astype(np.float32)


def disk_kernel(radius: float, sigma: float) -> np.ndarray:
    """A disk with a soft edge, of sum 1. Units: pixels."""
    half = math.ceil(radius) + 2
    axis = np.arange(-half, half + 1)
    disk = np.clip(radius + 0.5 - np.hypot(*np.meshgrid(axis, axis)), 0, 1).astype(np.float32)
    blurred = cv2.GaussianBlur(disk, (5, 5), max(sigma, 0.1))
    return blurred / blurred.sum()


def filtered(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Correlated with an odd kernel, mirrored at the edges."""
    return cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT_101)


def filtered_periodic(field: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Correlated with an odd kernel, the field repeated beyond its edges."""
    half = kernel.shape[0] // 2
    return filtered(np.pad(field, half, mode="wrap"), kernel)[half:-half, half:-half]
