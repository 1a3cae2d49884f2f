"""Convolutional gated recurrent units: the memory of the refinement.

z = sigmoid(Wz [h, x]), r = sigmoid(Wr [h, x]), q = tanh(Wq [r h, x]), h' = (1 - z) h + z q.
"""

import torch
from torch import nn


def _gru(h: torch.Tensor, x: torch.Tensor, convz: nn.Module, convr: nn.Module, convq: nn.Module) -> torch.Tensor:
    hx = torch.cat([h, x], dim=1)
    z = convz(hx).sigmoid_()
    r = convr(hx).sigmoid_()
    q = convq(torch.cat([r * h, x], dim=1)).tanh_()
    return h + z * (q - h)


class ConvGRU(nn.Module):
    """GRU with 3x3 convolutions (small model).

    Shapes:
        h [B, hidden_dim, H, W], x [B, input_dim, H, W], one dtype. Returns the new h.
    """

    def __init__(self, hidden_dim: int = 128, input_dim: int = 192 + 128):
        super().__init__()
        self.convz = nn.Conv2d(hidden_dim + input_dim, hidden_dim, 3, padding=1)
        self.convr = nn.Conv2d(hidden_dim + input_dim, hidden_dim, 3, padding=1)
        self.convq = nn.Conv2d(hidden_dim + input_dim, hidden_dim, 3, padding=1)

    def forward(self, h: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return _gru(h, x, self.convz, self.convr, self.convq)


class SepConvGRU(nn.Module):
    """A GRU with 1x5 convolutions, then one with 5x1 (large model). Shapes as :class:`ConvGRU`."""

    def __init__(self, hidden_dim: int = 128, input_dim: int = 192 + 128):
        super().__init__()
        planes = hidden_dim + input_dim
        self.convz1 = nn.Conv2d(planes, hidden_dim, (1, 5), padding=(0, 2))
        self.convr1 = nn.Conv2d(planes, hidden_dim, (1, 5), padding=(0, 2))
        self.convq1 = nn.Conv2d(planes, hidden_dim, (1, 5), padding=(0, 2))
        self.convz2 = nn.Conv2d(planes, hidden_dim, (5, 1), padding=(2, 0))
        self.convr2 = nn.Conv2d(planes, hidden_dim, (5, 1), padding=(2, 0))
        self.convq2 = nn.Conv2d(planes, hidden_dim, (5, 1), padding=(2, 0))

    def forward(self, h: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        h = _gru(h, x, self.convz1, self.convr1, self.convq1)
        return _gru(h, x, self.convz2, self.convr2, self.convq2)
