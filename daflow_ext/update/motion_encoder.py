"""Motion encoder: correlation window and current flow to motion features; the last two channels are the flow itself."""

import torch
import torch.nn.functional as F
from torch import nn


def _pointwise(conv: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """A 1x1 convolution; of contiguous x on the CPU one matrix product whose result is channels_last without a copy."""
    if x.device.type != "cpu" or not x.is_contiguous():
        return conv(x)
    assert conv.bias is not None
    weight = conv.weight.flatten(1).t().expand(x.shape[0], -1, -1)
    rows = torch.baddbmm(conv.bias, x.flatten(2).transpose(1, 2), weight)  # [B, H * W, planes]
    return rows.unflatten(1, x.shape[-2:]).permute(0, 3, 1, 2)


class BasicMotionEncoder(nn.Module):
    """Motion encoder of the large model.

    Shapes:
        flow [B, 2, H, W], corr [B, corr_planes, H, W]. Returns [B, 128, H, W].
    Units:
        flow in pixels of the H x W grid.
    """

    output_dim = 128

    def __init__(self, corr_planes: int):
        super().__init__()
        self.convc1 = nn.Conv2d(corr_planes, 256, 1)
        self.convc2 = nn.Conv2d(256, 192, 3, padding=1)
        self.convf1 = nn.Conv2d(2, 128, 7, padding=3)
        self.convf2 = nn.Conv2d(128, 64, 3, padding=1)
        self.conv = nn.Conv2d(192 + 64, self.output_dim - 2, 3, padding=1)

    def forward(self, flow: torch.Tensor, corr: torch.Tensor) -> torch.Tensor:
        c = F.relu(_pointwise(self.convc1, corr), inplace=True)
        c = F.relu(self.convc2(c), inplace=True)
        f = F.relu(self.convf1(flow), inplace=True)
        f = F.relu(self.convf2(f), inplace=True)
        out = F.relu(self.conv(torch.cat([c, f], dim=1)), inplace=True)
        return torch.cat([out, flow], dim=1)


class SmallMotionEncoder(nn.Module):
    """Motion encoder of the small model. Shapes and units as :class:`BasicMotionEncoder`, 82 channels out."""

    output_dim = 82

    def __init__(self, corr_planes: int):
        super().__init__()
        self.convc1 = nn.Conv2d(corr_planes, 96, 1)
        self.convf1 = nn.Conv2d(2, 64, 7, padding=3)
        self.convf2 = nn.Conv2d(64, 32, 3, padding=1)
        self.conv = nn.Conv2d(96 + 32, self.output_dim - 2, 3, padding=1)

    def forward(self, flow: torch.Tensor, corr: torch.Tensor) -> torch.Tensor:
        c = F.relu(_pointwise(self.convc1, corr), inplace=True)
        f = F.relu(self.convf1(flow), inplace=True)
        f = F.relu(self.convf2(f), inplace=True)
        out = F.relu(self.conv(torch.cat([c, f], dim=1)), inplace=True)
        return torch.cat([out, flow], dim=1)
