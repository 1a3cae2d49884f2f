"""Scores of restored video: PSNR, SSIM, LPIPS and the warping error, several restorations beside each other."""

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from ..flow.metrics import lpips, occlusion_and_boundaries, psnr, ssim, warping_error
from ..models.pair_flow import PairFlow

SCORES = {
    "psnr": "PSNR (dB)",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "warping_error": "warping error (x 1e-3)",
}
"""Name -> heading. Higher is better for the first two, lower for the others."""


def score_videos(
    truth: Iterable[PairFlow],
    videos: Mapping[str, Iterable[torch.Tensor]],
    *,
    lpips_weights: str | os.PathLike | bool | None = None,
) -> dict[str, dict[str, float]]:
    """Scores of each video against the clean one, in one walk along all of them; holds two frames of each.

    The warping error takes flow and mask from the clean video, once for all. Scores are means over frames (over pairs
    for the warping error); the truth itself has a warping error too, given as the video "truth".

    Args:
        truth: the pairs of the clean video, with flow in both directions.
        videos: name -> frames, uint8 [3, H, W], as many and as large as the clean ones.
        lpips_weights: a file for :func:`daflow_ext.flow.metrics.lpips`; True lets torchmetrics fetch them; None leaves
            LPIPS out.
    Units: warping error on colours in [0, 1], times 1000.
    Raises:
        ValueError: videos of another length or size.
    """
    sums: dict[str, dict[str, float]] = {name: dict.fromkeys(SCORES, 0.0) for name in (*videos, "truth")}
    walks = {name: iter(frames) for name, frames in videos.items()}
    held: dict[str, torch.Tensor] = {}
    pair, count = None, 0
    for pair in truth:
        if count == 0:
            held = {name: _next(walk, name, 0, pair.image1) for name, walk in walks.items()}
            _add_frames(sums, held, pair.image1, lpips_weights)
        after = {name: _next(walk, name, count + 1, pair.image2) for name, walk in walks.items()}
        _add_frames(sums, after, pair.image2, lpips_weights)
        assert pair.backward is not None  # asked for
        flow, back = pair.forward[None], pair.backward[None]
        hidden = occlusion_and_boundaries(flow, back)
        both = {name: torch.stack([held[name], after[name]]) for name in walks}
        for name, frames in {**both, "truth": torch.stack([pair.image1, pair.image2])}.items():
            sums[name]["warping_error"] += 1e3 * warping_error(frames, flow, hidden).item()
        held, count = after, count + 1
    if pair is None:
        raise ValueError("the clean video has no pair of frames to score against")
    for name, walk in walks.items():
        if next(walk, None) is not None:
            raise ValueError(f"{name} has more than the {count + 1} frames of the clean video")
    counts = {"psnr": count + 1, "ssim": count + 1, "lpips": count + 1, "warping_error": count}
    scores = {name: {score: value / counts[score] for score, value in row.items()} for name, row in sums.items()}
    for name, row in scores.items():
        for score in SCORES:
            if (score == "lpips" and not lpips_weights) or (name == "truth" and score != "warping_error"):
                del row[score]
    return scores


def score_table(scores: Mapping[str, Mapping[str, float]]) -> str:
    """The scores as lines of text; a dash where there is none."""
    first = max(len(name) for name in scores)
    widths = {score: max(len(heading), 7) + 2 for score, heading in SCORES.items()}
    lines = [" " * first + "".join(f"{heading:>{widths[score]}}" for score, heading in SCORES.items())]
    for name, row in scores.items():
        cells = {score: f"{row[score]:.{2 if score == 'psnr' else 4}f}" if score in row else "-" for score in SCORES}
        lines.append(f"{name:<{first}}" + "".join(f"{cell:>{widths[score]}}" for score, cell in cells.items()))
    return "\n".join(lines)


def _next(walk: Iterator[torch.Tensor], name: str, index: int, like: torch.Tensor) -> torch.Tensor:
    frame = next(walk, None)
    if frame is None:
        raise ValueError(f"{name} ends after {index} frame(s), the clean video goes on")
    if frame.shape != like.shape:
        raise ValueError(
            f"frame {index} of {name} is {frame.shape[2]}x{frame.shape[1]}, of the clean video "
            f"{like.shape[2]}x{like.shape[1]}"
        )
    return frame


def _add_frames(
    sums: dict[str, dict[str, float]], frames: dict[str, torch.Tensor], truth: torch.Tensor, lpips_weights: Any
) -> None:
    for name, frame in frames.items():
        one, other = frame[None], truth[None]
        sums[name]["psnr"] += psnr(one, other).item()
        sums[name]["ssim"] += ssim(one, other).item()
        if lpips_weights:
            path = None if lpips_weights is True else lpips_weights
            sums[name]["lpips"] += lpips(one, other, weights=path).item()
