"""Geometry and colour of training clips, before they are degraded."""

import math

import cv2
import numpy as np

from .config import AugmentConfig

Size = tuple[int, int]  # height, width


def random_crop(
    frames: np.ndarray,
    flow: np.ndarray | None,
    valid: np.ndarray | None,
    crop: Size,
    config: AugmentConfig,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Resized, flipped and cut to ``crop``, alike for all frames, flow and valid pixels.

    Shapes:
        frames [T, H, W, 3], flow [T-1, H, W, 2], valid [T-1, H, W]; returned with H, W = crop.
    Raises:
        ValueError: flow of another size than the frames.
    """
    if flow is not None and flow.shape[1:3] != frames.shape[1:3]:
        raise ValueError(f"flow is {flow.shape[1:3]} but its frames are {frames.shape[1:3]}; training needs one size")
    size = _size(frames.shape[1:3], crop, config, rng)
    top, left = (int(rng.integers(0, full - part + 1)) for full, part in zip(size, crop, strict=True))
    window = np.s_[:, top : top + crop[0], left : left + crop[1]]
    flips = tuple(axis for axis, chance in ((2, config.flip_x), (1, config.flip_y)) if rng.random() < chance)
    cut = np.ascontiguousarray(np.flip(_resize_frames(frames, size)[window], flips))
    if flow is None or valid is None:
        return cut, None, None
    flow, valid = _resize_flow(flow, valid, size)
    sign = np.array([-1.0 if axis in flips else 1.0 for axis in (2, 1)], np.float32)
    flow, valid = np.flip(flow[window], flips) * sign, np.flip(valid[window], flips)
    return cut, np.ascontiguousarray(flow), np.ascontiguousarray(valid)


def _size(size: Size, crop: Size, config: AugmentConfig, rng: np.random.Generator) -> Size:
    """The size to resize to: drawn, but at least the crop."""
    scale = rng.uniform(*config.scale)
    stretch = rng.uniform(-config.stretch, config.stretch, 2)
    factors = [max(2.0 ** (scale + s), part / full) for s, full, part in zip(stretch, size, crop, strict=True)]
    height, width = (max(part, round(full * f)) for full, f, part in zip(size, factors, crop, strict=True))
    return height, width


def _resize_frames(frames: np.ndarray, size: Size) -> np.ndarray:
    if size == frames.shape[1:3]:
        return frames
    interpolation = cv2.INTER_AREA if size[0] < frames.shape[1] else cv2.INTER_LINEAR
    return np.stack([cv2.resize(frame, (size[1], size[0]), interpolation=interpolation) for frame in frames])


def _resize_flow(flow: np.ndarray, valid: np.ndarray, size: Size) -> tuple[np.ndarray, np.ndarray]:
    height, width = flow.shape[1:3]
    if size == (height, width):
        return flow, valid
    to = (size[1], size[0])
    # vectors beside unknown ones must not be mixed with them: nearest where anything is unknown
    smooth = cv2.INTER_LINEAR if valid.all() else cv2.INTER_NEAREST
    ratio = np.array([size[1] / width, size[0] / height], np.float32)
    flow = np.stack([cv2.resize(one, to, interpolation=smooth) for one in flow]) * ratio
    masks = [cv2.resize(one.astype(np.uint8), to, interpolation=cv2.INTER_NEAREST) > 0 for one in valid]
    return flow, np.stack(masks)


def jitter(frames: np.ndarray, config: AugmentConfig, rng: np.random.Generator) -> np.ndarray:
    """Brightness, contrast, saturation and hue, one draw for the clip; uint8 [T, H, W, 3] in and out."""
    brightness, contrast, saturation = (
        1 + rng.uniform(-amount, amount) for amount in (config.brightness, config.contrast, config.saturation)
    )
    matrix = np.eye(3)
    angle = 2 * math.pi * rng.uniform(-config.hue, config.hue)
    axis = np.full(3, 3**-0.5)  # greys stay where they are
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    matrix = matrix + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross
    luma = np.tile([0.299, 0.587, 0.114], (3, 1))
    matrix = (saturation * np.eye(3) + (1 - saturation) * luma) @ matrix * (brightness * contrast)
    offset = brightness * (1 - contrast) * float(frames.mean())
    affine = np.concatenate([matrix, np.full((3, 1), offset)], axis=1)
    # cv2.transform on uint8 saturates and rounds
    return np.stack([cv2.transform(frame, affine) for frame in frames])
