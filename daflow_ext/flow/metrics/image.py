"""PSNR, SSIM and LPIPS of restored video; torchmetrics computes them and is an optional dependency."""

import functools
import importlib
import os
import types

import torch
import torch.nn.functional as F

from ...frames._files import existing_file

_LPIPS_SHIFT = (-0.030, -0.088, -0.188)
_LPIPS_SCALE = (0.458, 0.448, 0.450)
# AlexNet up to each of its five ReLUs: (index in the weights file, stride, padding, max-pool before it)
_ALEX = ((0, 4, 2, False), (3, 1, 2, True), (6, 1, 1, True), (8, 1, 1, False), (10, 1, 1, False))


def _torchmetrics(what: str) -> types.ModuleType:
    try:
        return importlib.import_module("torchmetrics.functional.image")
    except ImportError as error:
        raise ImportError(f"{what} needs torchmetrics: pip install 'daflow_ext[metrics]' ({error})") from error


def _unit_range(what: str, images: torch.Tensor, reference: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if images.dim() != 4 or images.shape[1] != 3 or images.shape != reference.shape:
        raise ValueError(f"{what}: both must be [T, 3, H, W], got {list(images.shape)} and {list(reference.shape)}")
    pair = images.float(), reference.float()
    if any(one.numel() and one.is_floating_point() and 0 < one.max() <= 1 for one in (images, reference)):
        raise ValueError(f"{what}: expected colours in [0, 255], got a float image whose maximum is at most 1")
    return pair[0] / 255, pair[1] / 255


def psnr(images: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB, mean of the frames' values; shapes [T, 3, H, W] in [0, 255]."""
    images, reference = _unit_range("psnr", images, reference)
    compute = _torchmetrics("psnr").peak_signal_noise_ratio
    return compute(images, reference, data_range=1.0, dim=(1, 2, 3), reduction="elementwise_mean")


def ssim(images: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Structural similarity (Gaussian window of 11, sigma 1.5), mean over frames; shapes [T, 3, H, W] in [0, 255]."""
    images, reference = _unit_range("ssim", images, reference)
    return _torchmetrics("ssim").structural_similarity_index_measure(images, reference, data_range=1.0)


def lpips(images: torch.Tensor, reference: torch.Tensor, *, weights: str | os.PathLike | None = None) -> torch.Tensor:
    """LPIPS v0.1 with AlexNet, mean over frames; lower is closer.

    ``weights``: a safetensors file with torchvision's ``features.<i>.weight/bias`` of AlexNet and ``lin<k>.weight`` of
    the linear heads; it is evaluated here and nothing is fetched. Without it torchmetrics computes the score, which
    needs torchvision and downloads the backbone on first use.

    Shapes: [T, 3, H, W] in [0, 255], sides of at least 64.
    Source: Zhang et al., CVPR 2018.
    """
    images, reference = _unit_range("lpips", images, reference)
    if weights is None:
        compute = _torchmetrics("lpips").learned_perceptual_image_patch_similarity
        try:
            return compute(images, reference, net_type="alex", normalize=True)
        except ModuleNotFoundError as error:
            raise ImportError(f"LPIPS without a file of weights needs torchvision ({error}); give a file") from error
    state = {name: tensor.to(images.device) for name, tensor in _lpips_weights(os.fspath(weights)).items()}
    distance = images.new_zeros(len(images))
    for level, (one, other) in enumerate(zip(_alex(images, state), _alex(reference, state), strict=True)):
        difference = (_unit_length(one) - _unit_length(other)).square()
        distance += F.conv2d(difference, state[f"lin{level}.weight"]).mean((1, 2, 3))
    return distance.mean()


@functools.lru_cache(maxsize=1)
def _lpips_weights(path: str) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(existing_file(path))
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file ({error})") from error
    needed = {f"features.{index}.{part}" for index, *_ in _ALEX for part in ("weight", "bias")}
    missing = sorted((needed | {f"lin{level}.weight" for level in range(len(_ALEX))}) - set(state))
    if missing:
        raise ValueError(f"{path} holds no LPIPS AlexNet: {missing[0]} and {len(missing) - 1} more are missing")
    return state


def _alex(images: torch.Tensor, state: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    shift, scale = (images.new_tensor(values)[None, :, None, None] for values in (_LPIPS_SHIFT, _LPIPS_SCALE))
    maps, x = [], (2 * images - 1 - shift) / scale
    for index, stride, padding, pool in _ALEX:
        x = F.max_pool2d(x, 3, 2) if pool else x
        x = F.relu(F.conv2d(x, state[f"features.{index}.weight"], state[f"features.{index}.bias"], stride, padding))
        maps.append(x)
    return maps


def _unit_length(x: torch.Tensor) -> torch.Tensor:
    return x / (x.square().sum(1, keepdim=True) + 1e-8).sqrt()
