"""The degradation pipeline: CPU time of one 3-frame 256x256 clip through both orders, over many draws of the recipe."""

import functools
import hashlib
from collections.abc import Iterator

import cv2
import numpy as np
import torch

from daflow_ext.frames.degrade import degrade

from . import timing

OP = "degrade"
SIDE, FRAMES = 256, 3
GOAL = 120.0  # milliseconds


def _clip() -> np.ndarray:
    """Coloured noise of several scales that moves 3 pixels per frame. uint8 [T, H, W, 3]."""
    rng = np.random.default_rng(0)
    size = (SIDE + 3 * FRAMES, SIDE)
    picture = np.full((SIDE, size[0], 3), 128, np.float32)
    for cells, contrast in ((8, 30), (32, 20), (96, 12)):
        grid = rng.standard_normal((cells, cells, 3)).astype(np.float32)
        picture += contrast * cv2.resize(grid, size, interpolation=cv2.INTER_CUBIC)
    picture = np.clip(picture, 0, 255).astype(np.uint8)
    return np.stack([picture[:, 3 * index : 3 * index + SIDE] for index in range(FRAMES)])


def records(quick: bool, device: str) -> Iterator[timing.Record]:
    """Median over draws, since the draw decides the cost; on a GPU the pixel stages run there, with no goal."""
    clip, where = _clip(), None if device == "cpu" else device
    draws = 9 if quick else 41
    presets = ("realbasicvsr", "star") if quick else ("realbasicvsr", "star", "level1", "level3", "level5")
    for preset in presets:
        _gate(clip, preset)
        calls = {f"{seed}": functools.partial(degrade, clip, preset, seed, device=where) for seed in range(draws)}
        times = timing.interleaved(calls, repeats=1, device=device)
        one = timing.Timing.of([time.median for time in times.values()])
        yield timing.Record(
            OP,
            f"{preset}, {FRAMES} frames {SIDE}x{SIDE}, median of {draws} draws",
            1e3 * one.median,
            "ms CPU" if where is None else "ms",
            goal=GOAL if where is None else None,
            at_least=False,
            details={**one.milliseconds(), "ms_max": max(1e3 * time.median for time in times.values())},
        )


def _gate(clip: np.ndarray, preset: str) -> None:
    """Equal seeds give equal bits, as arrays and as tensors."""
    tensor = torch.from_numpy(clip).permute(0, 3, 1, 2)
    results = [degrade(clip, preset, 5), degrade(tensor, preset, 5).permute(0, 2, 3, 1).contiguous().numpy()]
    if len({hashlib.sha256(result.tobytes()).hexdigest() for result in results}) != 1:
        raise timing.WrongResultError(f"{OP} {preset}: one seed gave two results; not timed")
