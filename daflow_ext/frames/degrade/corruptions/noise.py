"""Sensor noise, fresh in every frame and of mean 0 (before clipping)."""

import numpy as np

from ..resample import Size
from ..schedule import PIXELS, random_stream
from .registry import Filter, at, corruption


@corruption("noise")
def gaussian_noise(size: Size, severity: int, seed: int) -> Filter:
    """Normal noise of one strength everywhere."""
    sigma = np.float32(at(severity, (0.08, 0.12, 0.18, 0.26, 0.38)))

    def apply(frame: np.ndarray, index: int) -> np.ndarray:
        return frame + sigma * random_stream(seed, PIXELS, index).standard_normal(frame.shape, dtype=np.float32)

    return apply


@corruption("noise")
def shot_noise(size: Size, severity: int, seed: int) -> Filter:
    """Photon noise: Poisson counts of a white pixel worth 60 .. 3 photons."""
    photons = at(severity, (60, 25, 12, 5, 3))

    def apply(frame: np.ndarray, index: int) -> np.ndarray:
        return (random_stream(seed, PIXELS, index).poisson(frame * photons) / photons).astype(np.float32)

    return apply


@corruption("noise")
def impulse_noise(size: Size, severity: int, seed: int) -> Filter:
    """Salt and pepper: values set to 0 or 1, half of them each."""
    amount = at(severity, (0.03, 0.06, 0.09, 0.17, 0.27))

    def apply(frame: np.ndarray, index: int) -> np.ndarray:
        chance = random_stream(seed, PIXELS, index).random(frame.shape, dtype=np.float32)
        salt = np.where(chance < amount / 2, np.float32(1), frame)
        return np.where(chance > 1 - amount / 2, np.float32(0), salt)

    return apply


@corruption("noise")
def speckle_noise(size: Size, severity: int, seed: int) -> Filter:
    """Normal noise in proportion to the brightness."""
    sigma = np.float32(at(severity, (0.15, 0.2, 0.35, 0.45, 0.6)))

    def apply(frame: np.ndarray, index: int) -> np.ndarray:
        normal = random_stream(seed, PIXELS, index).standard_normal(frame.shape, dtype=np.float32)
        return frame * (1 + sigma * normal)

    return apply
