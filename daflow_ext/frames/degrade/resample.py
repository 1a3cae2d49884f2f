"""Resizing that keeps a ramp a ramp: every filter here reproduces linear signals exactly, between any two sizes.

Sizes are always explicit integers, and the two frames cover the same area: output pixel i is centred at
``(i + 0.5) * n_in / n_out - 0.5``. A factor whose rounded size is stretched back later would move things by pixels.

Two filters differ from OpenCV's for that reason. ``area`` is the mean of the *bilinear* interpolant over the output
cell: the mean over whole input pixels wobbles by 0.1 input pixels at factors near 1. ``bicubic`` is Keys' kernel with
a = -0.5 (Pillow, MATLAB): a = -0.75 (OpenCV, ``F.interpolate``) moves a ramp by up to 0.05 input pixels, which
is 0.2 pixels of the picture after an enlargement by 4.
"""

import cv2
import numpy as np

Size = tuple[int, int]  # height, width


def area_samples(n_in: int, n_out: int) -> int:
    """How many bilinear samples per output cell the ``area`` filter averages along one axis."""
    return max(2, -(-n_in // n_out))


def keys_weights(n_in: int, n_out: int) -> tuple[np.ndarray, np.ndarray]:
    """The four taps of Keys' cubic convolution (a = -0.5) for each output pixel, edges repeated.

    Shapes: indices int64 [n_out, 4], weights float32 [n_out, 4].
    """
    centre = (np.arange(n_out) + 0.5) * (n_in / n_out) - 0.5
    left = np.floor(centre)
    t = centre - left
    weights = np.stack(
        [
            ((-0.5 * t + 1.0) * t - 0.5) * t,
            (1.5 * t - 2.5) * t * t + 1.0,
            ((-1.5 * t + 2.0) * t + 0.5) * t,
            (0.5 * t - 0.5) * t * t,
        ],
        axis=1,
    )
    indices = left.astype(np.int64)[:, None] + np.arange(-1, 3)
    return np.clip(indices, 0, n_in - 1), weights.astype(np.float32)


def _keys_rows(frame: np.ndarray, n_out: int) -> np.ndarray:
    """Resample axis 0. A tap at a time, in a fixed order of additions: the same bits everywhere."""
    indices, weights = keys_weights(frame.shape[0], n_out)
    out = np.zeros((n_out, *frame.shape[1:]), np.float32)
    for tap in range(4):
        out += frame[indices[:, tap]] * weights[:, tap, None, None]
    return out


def resize(frame: np.ndarray, size: Size, interpolation: str) -> np.ndarray:
    """A frame at another size.

    Shapes: float32 [H, W, C] -> float32 [size[0], size[1], C].
    """
    height, width = size
    if frame.shape[:2] == (height, width):
        return frame
    if interpolation == "bilinear":
        return cv2.resize(frame, (width, height), interpolation=cv2.INTER_LINEAR)
    if interpolation == "area":
        rows, columns = area_samples(frame.shape[0], height), area_samples(frame.shape[1], width)
        fine = cv2.resize(frame, (columns * width, rows * height), interpolation=cv2.INTER_LINEAR)
        return cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA)
    # the smaller axis first: fewer pixels in the second pass
    frame = _keys_rows(frame, height)
    return np.ascontiguousarray(_keys_rows(frame.transpose(1, 0, 2), width).transpose(1, 0, 2))
