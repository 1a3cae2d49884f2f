"""RAFT's convolutional encoders: a frame to features at 1/8 of its resolution.

Module and parameter names are those of the official checkpoints, so these load strictly.
Source: RAFT (Teed & Deng, ECCV 2020, arXiv 2003.12039), section 3.1 and figure 3.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

_BAND = 1 << 18  # elements


class InstanceNorm(nn.Module):
    """Zero mean and unit variance of every channel of every image (eps 1e-5), no parameters."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.device.type != "cpu":
            return F.instance_norm(x)
        if x.is_contiguous() or torch.is_grad_enabled() or x.dtype in (torch.float16, torch.bfloat16):
            # The same thing, whose CPU kernel is several times faster; that for channels_last loses a digit.
            return F.group_norm(x.contiguous(), x.shape[1])
        centred = x - x.mean((2, 3), keepdim=True)
        bands = centred.split(max(1, _BAND // (x.shape[1] * x.shape[3])), dim=2)  # whose squares stay in the cache
        squares = sum(band.square().sum((2, 3), keepdim=True) for band in bands)
        return centred.mul_((squares / (x.shape[2] * x.shape[3]) + 1e-5).rsqrt_())


_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "instance": lambda channels: InstanceNorm(),
    "none": lambda channels: nn.Identity(),
}


def _norm(norm_fn: str, channels: int) -> nn.Module:
    if norm_fn not in _NORMS:
        raise ValueError(f"encoder: norm_fn must be one of {', '.join(_NORMS)}, got {norm_fn!r}")
    return _NORMS[norm_fn](channels)


def _conv_norm(conv: Any, norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    if not isinstance(norm, nn.BatchNorm2d) or norm.training:
        return norm(conv(x))
    assert conv.bias is not None
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()  # with its statistics fixed, part of the convolution
    bias = (conv.bias - norm.running_mean) * scale + norm.bias
    return F.conv2d(x, conv.weight * scale.view(-1, 1, 1, 1), bias, conv.stride, conv.padding)


def _conv_norm_relu(conv: nn.Conv2d, norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return F.relu(_conv_norm(conv, norm, x), inplace=True)


def _add_relu(shortcut: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    total = shortcut + y if torch.is_grad_enabled() else y.add_(shortcut)
    return F.relu(total, inplace=True)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut. [B, in_planes, H, W] -> [B, planes, H / stride, W / stride]."""

    def __init__(self, in_planes: int, planes: int, norm_fn: str = "batch", stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, padding=1, stride=stride)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1)
        self.norm1 = _norm(norm_fn, planes)
        self.norm2 = _norm(norm_fn, planes)
        self.downsample = None
        if stride != 1:
            # One module under two names: official checkpoints hold it as norm3 and as downsample.1.
            self.norm3 = _norm(norm_fn, planes)
            self.downsample = nn.Sequential(nn.Conv2d(in_planes, planes, 1, stride=stride), self.norm3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = _conv_norm_relu(self.conv1, self.norm1, x)
        y = _conv_norm_relu(self.conv2, self.norm2, y)
        shortcut = x if self.downsample is None else _conv_norm(self.downsample[0], self.downsample[1], x)
        return _add_relu(shortcut, y)


class BottleneckBlock(nn.Module):
    """1x1, 3x3, 1x1 convolutions on a quarter of the channels beside a shortcut. Shapes as :class:`ResidualBlock`."""

    def __init__(self, in_planes: int, planes: int, norm_fn: str = "batch", stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes // 4, 1)
        self.conv2 = nn.Conv2d(planes // 4, planes // 4, 3, padding=1, stride=stride)
        self.conv3 = nn.Conv2d(planes // 4, planes, 1)
        self.norm1 = _norm(norm_fn, planes // 4)
        self.norm2 = _norm(norm_fn, planes // 4)
        self.norm3 = _norm(norm_fn, planes)
        self.downsample = None
        if stride != 1:
            self.norm4 = _norm(norm_fn, planes)  # also downsample.1, as in ResidualBlock
            self.downsample = nn.Sequential(nn.Conv2d(in_planes, planes, 1, stride=stride), self.norm4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = _conv_norm_relu(self.conv1, self.norm1, x)
        y = _conv_norm_relu(self.conv2, self.norm2, y)
        y = _conv_norm_relu(self.conv3, self.norm3, y)
        shortcut = x if self.downsample is None else _conv_norm(self.downsample[0], self.downsample[1], x)
        return _add_relu(shortcut, y)


class Encoder(nn.Module):
    """7x7 convolution of stride 2, three stages of two blocks (strides 1, 2, 2), 1x1 convolution.

    Args:
        block: :class:`ResidualBlock` or :class:`BottleneckBlock`.
        planes: channels of the three stages; the first also of the 7x7 convolution.
        output_dim: channels of the result.
        norm_fn: "batch", "instance" or "none".
        dropout: probability of dropping a whole output channel in training.
    Shapes:
        image [B, 3, H, W] in [-1, 1], H and W multiples of 8. Returns [B, output_dim, H / 8, W / 8].
    """

    def __init__(
        self,
        block: type[nn.Module],
        planes: Sequence[int],
        output_dim: int = 128,
        norm_fn: str = "batch",
        dropout: float = 0.0,
    ):
        super().__init__()
        first, second, third = planes
        self.norm1 = _norm(norm_fn, first)
        self.conv1 = nn.Conv2d(3, first, 7, stride=2, padding=3)
        self.layer1 = nn.Sequential(block(first, first, norm_fn), block(first, first, norm_fn))
        self.layer2 = nn.Sequential(block(first, second, norm_fn, stride=2), block(second, second, norm_fn))
        self.layer3 = nn.Sequential(block(second, third, norm_fn, stride=2), block(third, third, norm_fn))
        self.conv2 = nn.Conv2d(third, output_dim, 1)
        self.dropout = nn.Dropout2d(dropout)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = _conv_norm_relu(self.conv1, self.norm1, image)
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.dropout(self.conv2(x))


class BasicEncoder(Encoder):
    """Encoder of the large model: residual blocks with 64, 96 and 128 channels."""

    def __init__(self, output_dim: int = 128, norm_fn: str = "batch", dropout: float = 0.0):
        super().__init__(ResidualBlock, (64, 96, 128), output_dim, norm_fn, dropout)


class SmallEncoder(Encoder):
    """Encoder of the small model: bottleneck blocks with 32, 64 and 96 channels."""

    def __init__(self, output_dim: int = 128, norm_fn: str = "batch", dropout: float = 0.0):
        super().__init__(BottleneckBlock, (32, 64, 96), output_dim, norm_fn, dropout)
