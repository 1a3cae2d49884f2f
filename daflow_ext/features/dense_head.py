"""From the tokens of a transformer to a dense map: DPT, and plain bilinear upsampling.

Tokens live on the 1/16 grid of the image, the maps that RAFT reads on the 1/8 grid.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

TOKEN_STRIDE = 16
"""Image pixels per token."""


class DenseHead(nn.Module):
    """DPT: the tapped layers become maps of several resolutions, fused from the deepest to the shallowest.

    Every tap: LayerNorm (one for all), 1x1 convolution, resize by its entry of ``scales``, 3x3 convolution. The deepest
    is then refined by residual units, brought to the size of the next shallower one and added to it, and so on; the
    last is brought to ``out_stride`` and convolved once more. All resizing keeps cell centres where they are
    (``align_corners=False``), so that moving the tokens by one moves the map by 16 / out_stride, away from the border:
    features for matching must not depend on where they stand.

    Args:
        token_channels: width C of the tokens. out_channels: channels of the map.
        channels: width of the fusion.
        tap_channels: width of each tap before its 3x3 convolution; ``channels`` for all by default.
        scales: size of each tap's map relative to the token grid, in the order of the taps: 4, 2, 1 or 0.5.
        out_stride: image pixels per cell of the result.
        position_embedding: add sines of the position, scaled by 0.1, to every tap and to the result. For heads that
            predict quantities of a place (depth); it biases matching towards no motion.
    Raises:
        ValueError: numbers of taps that disagree, an unknown scale.
    Source: DPT (Ranftl et al., ICCV 2021, arXiv 2103.13413); shared norm, scales and embedding as described for VGGT
        (Wang et al., CVPR 2025, arXiv 2503.11651).
    """

    def __init__(
        self,
        token_channels: int,
        out_channels: int,
        *,
        channels: int = 256,
        tap_channels: Sequence[int] | None = None,
        scales: Sequence[float] = (1, 1, 2, 2),
        out_stride: int = 8,
        position_embedding: bool = False,
    ):
        super().__init__()
        tap_channels = tuple(tap_channels or [channels] * len(scales))
        if len(tap_channels) != len(scales):
            raise ValueError(f"DenseHead: {len(scales)} scales but {len(tap_channels)} tap_channels {tap_channels}")
        self.out_stride, self.position_embedding = out_stride, position_embedding
        self.norm = nn.LayerNorm(token_channels)
        self.projections = nn.ModuleList(nn.Conv2d(token_channels, width, 1) for width in tap_channels)
        self.resizes = nn.ModuleList(map(_resize_layer, tap_channels, scales))
        self.laterals = nn.ModuleList(nn.Conv2d(width, channels, 3, padding=1, bias=False) for width in tap_channels)
        deepest = len(scales) - 1
        self.fusions = nn.ModuleList(FusionBlock(channels, lateral=tap < deepest) for tap in range(len(scales)))
        self.output = nn.Conv2d(channels, out_channels, 3, padding=1)

    def forward(self, taps: Sequence[torch.Tensor], grid: tuple[int, int]) -> torch.Tensor:
        """The map of these tapped layers.

        Shapes:
            taps: per layer [B, T, C] on the token grid ``grid`` = (h, w), T = h * w. Returns
            [B, out_channels, 16 h / out_stride, 16 w / out_stride].
        Raises:
            ValueError: another number or shape of taps.
        """
        maps = [
            lateral(resize(self._positioned(projection(tokens))))
            for tokens, projection, resize, lateral in zip(
                token_maps(taps, grid, self.norm, len(self.projections)),
                self.projections,
                self.resizes,
                self.laterals,
                strict=True,
            )
        ]
        sizes = [_map_size(grid, self.out_stride), *(tuple(m.shape[-2:]) for m in maps[:-1])]
        fused = None
        for lateral_map, fusion, size in zip(reversed(maps), reversed(self.fusions), reversed(sizes), strict=True):
            fused = fusion(fused, lateral_map, size)
        return self._positioned(self.output(fused))

    def _positioned(self, image: torch.Tensor) -> torch.Tensor:
        return image + position_embedding(image) if self.position_embedding else image


class BilinearHead(nn.Module):
    """The ablation of :class:`DenseHead`: norm, one 1x1 convolution over all taps, bilinear upsampling.

    Arguments, shapes and errors as there.
    """

    def __init__(self, token_channels: int, out_channels: int, *, taps: int = 4, out_stride: int = 8):
        super().__init__()
        self.taps, self.out_stride = taps, out_stride
        self.norm = nn.LayerNorm(token_channels)
        self.output = nn.Conv2d(taps * token_channels, out_channels, 1)

    def forward(self, taps: Sequence[torch.Tensor], grid: tuple[int, int]) -> torch.Tensor:
        maps = token_maps(taps, grid, self.norm, self.taps)
        return resized(self.output(torch.cat(maps, dim=1)), _map_size(grid, self.out_stride))


class FusionBlock(nn.Module):
    """Adds the refined lateral map to the running one, refines the sum, resizes it and mixes its channels."""

    def __init__(self, channels: int, lateral: bool = True):
        super().__init__()
        self.lateral = ResidualConvUnit(channels) if lateral else None  # the deepest map has nothing to be added to
        self.refine = ResidualConvUnit(channels)
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, fused: torch.Tensor | None, lateral: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        total = lateral if fused is None or self.lateral is None else fused + self.lateral(lateral)
        return self.project(resized(self.refine(total), size))


class ResidualConvUnit(nn.Module):
    """x + conv(relu(conv(relu(x)))); the ReLU must not work in place, or the skip would carry relu(x)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


def token_maps(
    taps: Sequence[torch.Tensor], grid: tuple[int, int], norm: nn.LayerNorm, expected: int
) -> list[torch.Tensor]:
    """Normalised tokens [B, T, C] as images [B, C, h, w], in the dtype of the weights."""
    height, width = grid
    channels = norm.normalized_shape[0]
    if len(taps) != expected:
        raise ValueError(f"the head reads {expected} tapped layers, got {len(taps)}")
    for index, tokens in enumerate(taps):
        if tokens.dim() != 3 or tokens.shape[1:] != (height * width, channels):
            raise ValueError(
                f"tap {index} must be [B, {height * width}, {channels}] for a {height} x {width} token grid, "
                f"got {list(tokens.shape)}"
            )
    return [norm(tokens.to(norm.weight.dtype)).transpose(1, 2).unflatten(2, grid) for tokens in taps]


def resized(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bilinear, cell centres kept; nothing happens where the size is right."""
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    return F.interpolate(image, size=size, mode="bilinear", align_corners=False)


def position_embedding(like: torch.Tensor, base: float = 100.0, strength: float = 0.1) -> torch.Tensor:
    """Sines and cosines of the position, [C, h, w]: half the channels for x, half for y.

    Positions are those of cell centres on a plane whose half diagonal is 1, whatever the aspect.
    """
    channels, height, width = like.shape[-3:]
    if channels % 4:
        raise ValueError(f"a position embedding needs a multiple of 4 channels, got {channels}")
    waves = base ** -(torch.arange(channels // 4, device=like.device) / (channels // 4))
    embedding = []
    for count, others in ((width, height), (height, width)):
        place = (2 * torch.arange(count, device=like.device) + 1 - count) / math.hypot(count, others)
        angles = waves[:, None] * place  # [C / 4, count]
        embedding.append(torch.cat([angles.sin(), angles.cos()]))
    half = channels // 2
    x = embedding[0][:, None, :].expand(half, height, width)
    y = embedding[1][:, :, None].expand(half, height, width)
    return strength * torch.cat([x, y]).to(like.dtype)


def _resize_layer(channels: int, scale: float) -> nn.Module:
    if scale in (2, 4):
        return nn.ConvTranspose2d(channels, channels, int(scale), stride=int(scale))
    if scale == 1:
        return nn.Identity()
    if scale == 0.5:
        return nn.Conv2d(channels, channels, 3, stride=2, padding=1)
    raise ValueError(f"DenseHead: a scale must be 4, 2, 1 or 0.5, got {scale!r}")


def _map_size(grid: tuple[int, int], out_stride: int) -> tuple[int, int]:
    return grid[0] * TOKEN_STRIDE // out_stride, grid[1] * TOKEN_STRIDE // out_stride
