"""Brightness, contrast and saturation."""

import cv2
import numpy as np

from ..resample import Size
from .registry import Filter, at, corruption


@corruption("color")
def brightness(size: Size, severity: int, seed: int) -> Filter:
    """Raise the value of HSV, hue and saturation kept."""
    added = at(severity, (0.1, 0.2, 0.3, 0.4, 0.5))

    def apply(frame: np.ndarray, index: int) -> np.ndarray:
        hsv = cv2.cvtColor(frame, cv2.COLOR_RGB2HSV)
        hsv[..., 2] = np.minimum(hsv[..., 2] + added, 1)
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)

    return apply


@corruption("color")
def contrast(size: Size, severity: int, seed: int) -> Filter:
    """Pull every channel towards its mean."""
    factor = at(severity, (0.4, 0.3, 0.2, 0.1, 0.05))

    def apply(frame: np.ndarray, index: int) -> np.ndarray:
        mean = frame.mean(axis=(0, 1), keepdims=True)
        return mean + factor * (frame - mean)

    return apply


@corruption("color")
def saturate(size: Size, severity: int, seed: int) -> Filter:
    """Scale the saturation of HSV: severities 1 and 2 remove colour, 3 to 5 exaggerate it."""
    factor, added = at(severity, ((0.3, 0.0), (0.1, 0.0), (2.0, 0.0), (5.0, 0.1), (20.0, 0.2)))

    def apply(frame: np.ndarray, index: int) -> np.ndarray:
        hsv = cv2.cvtColor(frame, cv2.COLOR_RGB2HSV)
        hsv[..., 1] = np.clip(hsv[..., 1] * factor + added, 0, 1)
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)

    return apply
