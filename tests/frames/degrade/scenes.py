"""Pictures that the tests degrade, and how they find out whether a picture has moved."""

import cv2
import numpy as np


def plane(height: int, width: int, slope: float = 1.0) -> np.ndarray:
    """Three ramps: to the right, downwards, and both. float32 [H, W, 3]."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return slope * np.stack([x, y, x + y], axis=-1)


def plane_shift(ramps: np.ndarray, shape: tuple[int, int], margin: float) -> float:
    """Largest displacement, in pixels of the original of ``shape``, of resampled ``plane(*shape)`` inside a margin.

    ``margin``: in pixels of the original, at every edge; ``ramps`` may have another size than the original.
    """
    height, width = ramps.shape[:2]
    x = (np.arange(width) + 0.5) * shape[1] / width - 0.5
    y = (np.arange(height) + 0.5) * shape[0] / height - 0.5
    inside_x = (x >= margin) & (x <= shape[1] - 1 - margin)
    inside_y = (y >= margin) & (y <= shape[0] - 1 - margin)
    assert inside_x.sum() > 1
    assert inside_y.sum() > 1, "the margin leaves nothing to look at"
    error = ramps - np.stack(np.broadcast_arrays(x[None], y[:, None], x[None] + y[:, None]), axis=-1)
    error[..., 2] /= 2  # its slope along the diagonal
    return float(np.abs(error[inside_y][:, inside_x]).max())


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A colourful picture with structure of 6 pixels and more. uint8 [H, W, 3]."""
    rng = np.random.default_rng(seed)
    picture = np.full((height, width, 3), 128, np.float32)
    for cell, contrast in ((6, 18), (13, 22), (40, 26)):
        grid = rng.standard_normal((height // cell + 2, width // cell + 2, 3)).astype(np.float32)
        picture += contrast * cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def clip(frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """A texture that moves 3 pixels to the right and 1 down per frame. uint8 [T, H, W, 3]."""
    big = texture(height + frames, width + 3 * frames, seed)
    return np.stack(
        [big[frames - t : frames - t + height, 3 * (frames - t) : 3 * (frames - t) + width] for t in range(frames)]
    )


def displacement(result: np.ndarray, original: np.ndarray, blocks: int = 1) -> np.ndarray:
    """Least-squares displacement (x, y) in pixels of ``result`` against ``original`` in ``blocks`` x ``blocks`` parts.

    Fits gain * (original - grad . d) + offset to each part: symmetric filters, zero-mean errors and changes of
    brightness or contrast leave d at 0.
    Shapes: [blocks * blocks, 2].
    """
    original, result = original.astype(np.float64), result.astype(np.float64)
    dy, dx = np.gradient(original, axis=(0, 1))
    found = []
    for rows in np.array_split(np.arange(original.shape[0]), blocks):
        for columns in np.array_split(np.arange(original.shape[1]), blocks):
            part = np.ix_(rows, columns)
            terms = [-dx[part], -dy[part], original[part], np.ones_like(original[part])]
            fit = np.linalg.lstsq(np.stack([term.ravel() for term in terms], axis=1), result[part].ravel(), rcond=None)[
                0
            ]
            found.append(fit[:2] / fit[2])
    return np.array(found)
