"""Videos in the layouts users have (NumPy channels last, torch channels first) as uint8 frames, and back."""

import numbers
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch

Frames = Iterator[np.ndarray]
Video = np.ndarray | torch.Tensor

EXPECTED = "NumPy [T, H, W, 3] or [H, W, 3], or torch [B, F, 3, H, W], [F, 3, H, W] or [3, H, W]"


def _as_uint8(video: np.ndarray) -> np.ndarray:
    if video.dtype == np.uint8:
        return video
    if not np.issubdtype(video.dtype, np.floating):
        raise TypeError(f"a video must be uint8 or float in [0, 255], got {video.dtype}")
    low, high = float(video.min()), float(video.max())
    if not (low >= 0 and high <= 255):  # also refuses NaN
        raise ValueError(f"a float video must hold values in [0, 255], got {low:g} .. {high:g}")
    if 0 < high <= 1:
        raise ValueError(f"a float video must hold values in [0, 255], got a maximum of {high:g}; multiply by 255")
    return np.rint(video).astype(np.uint8)


def _as_array(video: torch.Tensor) -> np.ndarray:
    video = video.detach().movedim(-3, -1).contiguous().cpu()
    return (video.float() if video.dtype == torch.bfloat16 else video).numpy()  # NumPy has no bfloat16


def check_frame(frame: np.ndarray) -> np.ndarray:
    """``frame`` itself, or an error that says why it is no uint8 [H, W, 3] frame."""
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
        raise ValueError(f"a frame must be uint8 [H, W, 3] and not empty, got {frame.dtype} {frame.shape}")
    return frame


def seeds_of(seed: int | Sequence[int], count: int) -> list[int]:
    """One seed per clip: the given ones, or ``seed``, ``seed + 1``, ..."""
    if isinstance(seed, str) or not isinstance(seed, numbers.Integral | Iterable):
        raise TypeError(f"a seed must be an integer or a sequence of integers, got {seed!r}")
    seeds = list(seed) if isinstance(seed, Iterable) else [seed + clip for clip in range(count)]
    if not all(isinstance(value, numbers.Integral) for value in seeds):
        raise TypeError(f"seeds must be integers, got {seeds}")
    if len(seeds) != count:
        raise ValueError(f"{count} clips need one seed or {count}, got {len(seeds)}")
    if any(value < 0 for value in seeds):
        raise ValueError(f"a seed must not be negative, got {min(seeds)}")
    return [int(value) for value in seeds]


def map_video(video: Video, seed: int | Sequence[int], run: Callable[[Iterable[np.ndarray], int], Frames]) -> Video:
    """``run(frames, seed)`` on every clip of ``video``; the result has the type, device and rank of ``video``.

    Raises:
        TypeError, ValueError: neither of the layouts, an empty video, floats outside [0, 255] or at most 1.
    """
    if not isinstance(video, torch.Tensor | np.ndarray):
        raise TypeError(f"a video must be {EXPECTED}, got {type(video).__name__}")
    shape = tuple(video.shape)
    ranks, channels = ((3, 4, 5), -3) if isinstance(video, torch.Tensor) else ((3, 4), -1)
    if len(shape) not in ranks or shape[channels] != 3 or 0 in shape:
        kind = "torch" if isinstance(video, torch.Tensor) else "NumPy"
        raise ValueError(f"a video must be {EXPECTED}, none of them empty, got {kind} {shape}")
    array = _as_uint8(_as_array(video) if isinstance(video, torch.Tensor) else video)
    clips = array.reshape(-1, *(array.shape[-4:] if array.ndim > 3 else (1, *array.shape)))
    results = [np.stack(list(run(clip, one))) for clip, one in zip(clips, seeds_of(seed, len(clips)), strict=True)]
    result = np.stack(results)
    result = result.reshape(*array.shape[:-3], *result.shape[-3:])
    if isinstance(video, np.ndarray):
        return result.astype(video.dtype)
    return torch.from_numpy(result).movedim(-1, -3).contiguous().to(device=video.device, dtype=video.dtype)
