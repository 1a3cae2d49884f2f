"""Colours of restored frames follow the input: a diffusion model drifts in tone."""

import torch
import torch.nn.functional as F

COLOR_FIXES = ("adain", "wavelet", "none")
_WAVELET_LEVELS = 5


def fix_colors(restored: torch.Tensor, source: torch.Tensor, method: str) -> torch.Tensor:
    """restored with the tones of source.

    "adain": per frame and channel, mean and standard deviation become those of source. "wavelet": the low frequencies
    (five dilated binomial blurs) are swapped for those of source.

    Shapes:
        restored, source: [B, F, 3, H, W] in [0, 255]; returns the same.
    Source: AdaIN (arXiv 1703.06868); wavelet colour correction as in StableSR (arXiv 2305.07015).
    """
    if method == "none":
        return restored
    if method == "adain":
        mean, deviation = _statistics(restored)
        source_mean, source_deviation = _statistics(source)
        return ((restored - mean) / deviation * source_deviation + source_mean).clamp(0, 255)
    return (restored - _low_frequencies(restored) + _low_frequencies(source)).clamp(0, 255)


def _statistics(frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    # over n, not n - 1: no difference to their ratio, and a frame of one pixel has them
    variance, mean = torch.var_mean(frames, dim=(-2, -1), correction=0, keepdim=True)
    return mean, (variance + 1e-5).sqrt()


def _low_frequencies(frames: torch.Tensor) -> torch.Tensor:
    row = frames.new_tensor([0.25, 0.5, 0.25])
    kernel = (row[:, None] * row)[None, None]
    images = frames.flatten(0, 2)[:, None]  # every channel on its own
    for level in range(_WAVELET_LEVELS):
        step = 2**level
        padded = F.pad(images, (step,) * 4, mode="replicate")
        images = F.conv2d(padded, kernel, dilation=step)
    return images[:, 0].view_as(frames)
