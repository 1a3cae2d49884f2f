"""The same pixel stages in PyTorch, for any device: float32 [3, H, W] in grey levels 0..255.

Filters agree with :mod:`.stages` to float precision; noise has the same distribution but other random numbers.
JPEG and the video codecs have no counterpart here: they run on the CPU.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F

from .kernels import gaussian_kernel
from .resample import Size, area_samples, keys_weights
from .schedule import Noise, random_stream
from .stages import USM_SIGMA, USM_SIZE, USM_THRESHOLD, USM_WEIGHT

LUMA = (0.299, 0.587, 0.114)


def to_uint8(frame: torch.Tensor) -> np.ndarray:
    """Clipped and rounded to 8 bits, on the CPU: uint8 [H, W, 3]."""
    return frame.clamp(0, 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().cpu().numpy()


def _mirrored(length: int, pad: int, device: torch.device) -> torch.Tensor:
    """Row (or column) numbers of an axis mirrored about its end pixels; unlike ``F.pad``, for any length."""
    period = max(2 * (length - 1), 1)
    index = torch.arange(-pad, length + pad, device=device) % period
    return torch.minimum(index, period - index) if length > 1 else torch.zeros_like(index)


def _mirror(frame: torch.Tensor, pad: int) -> torch.Tensor:
    rows = frame.index_select(-2, _mirrored(frame.shape[-2], pad, frame.device))
    return rows.index_select(-1, _mirrored(frame.shape[-1], pad, frame.device))


def blur(frame: torch.Tensor, kernel: np.ndarray) -> torch.Tensor:
    """Correlate every channel with ``kernel`` (odd size); the frame is mirrored at its edges."""
    weight = torch.from_numpy(kernel).to(frame.device)[None, None]
    return F.conv2d(_mirror(frame, kernel.shape[0] // 2)[:, None], weight)[:, 0]


def _usm_blur(frame: torch.Tensor) -> torch.Tensor:
    axis = gaussian_kernel(USM_SIZE, USM_SIGMA, USM_SIGMA).sum(0)  # the Gaussian is separable
    weight = torch.from_numpy(axis).to(frame.device)
    frame = _mirror(frame, USM_SIZE // 2)[:, None]
    return F.conv2d(F.conv2d(frame, weight[None, None, :, None]), weight[None, None, None, :])[:, 0]


def unsharp_mask(frame: torch.Tensor) -> torch.Tensor:
    """Sharpen where there is detail; see :func:`.stages.unsharp_mask`."""
    residual = frame - _usm_blur(frame)
    soft = _usm_blur((residual.abs() > USM_THRESHOLD).to(frame.dtype))
    sharp = (frame + USM_WEIGHT * residual).clamp(0, 255)
    return frame + soft * (sharp - frame)


def _keys_axis(frame: torch.Tensor, n_out: int, dim: int) -> torch.Tensor:
    indices, weights = keys_weights(frame.shape[dim], n_out)
    shape = [1] * frame.dim()
    shape[dim] = n_out
    out = frame.new_zeros(())
    for tap in range(4):
        index = torch.from_numpy(indices[:, tap]).to(frame.device)
        weight = torch.from_numpy(weights[:, tap]).to(frame.device).view(shape)
        out = out + frame.index_select(dim, index) * weight
    return out


def resize(frame: torch.Tensor, size: Size, interpolation: str) -> torch.Tensor:
    """A frame at another size; the filters of :mod:`.resample`."""
    if tuple(frame.shape[-2:]) == tuple(size):
        return frame
    if interpolation == "bicubic":
        return _keys_axis(_keys_axis(frame, size[0], -2), size[1], -1)
    if interpolation == "bilinear":
        return F.interpolate(frame[None], size, mode="bilinear", align_corners=False)[0]
    samples = tuple(area_samples(before, after) for before, after in zip(frame.shape[-2:], size, strict=True))
    fine = (samples[0] * size[0], samples[1] * size[1])
    return F.avg_pool2d(F.interpolate(frame[None], fine, mode="bilinear", align_corners=False), samples)[0]


def add_noise(frame: torch.Tensor, noise: Noise, seed: int, key: tuple[int, ...]) -> torch.Tensor:
    """Gaussian or Poisson noise; see :func:`.stages.add_noise`."""
    generator = torch.Generator(frame.device)
    generator.manual_seed(int(random_stream(seed, *key).integers(2**63)))
    if noise.kind == "gaussian":
        shape = (1 if noise.gray else 3, *frame.shape[-2:])
        added = torch.randn(shape, generator=generator, device=frame.device) * noise.strength
    else:
        clean = frame
        if noise.gray:
            clean = (frame * torch.tensor(LUMA, device=frame.device).view(3, 1, 1)).sum(0, keepdim=True)
        clean = clean.clamp(0, 255).round()
        levels = int(torch.count_nonzero(torch.bincount(clean.to(torch.int64).flatten(), minlength=256)))
        peak = 2.0 ** math.ceil(math.log2(levels))
        expected = clean * (peak / 255.0)
        added = (torch.poisson(expected, generator) - expected) * (255.0 * noise.strength / peak)
    return (frame + added).clamp(0, 255)


def size_of(frame: torch.Tensor) -> Size:
    return frame.shape[-2], frame.shape[-1]
