"""Convolutional gated recurrent units: the memory of the refinement.

z = sigmoid(Wz [h, x]), r = sigmoid(Wr [h, x]), q = tanh(Wq [r h, x]), h' = (1 - z) h + z q, with x = [context, motion].
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn


class ContextPass(NamedTuple):
    """A pass of a GRU whose context is known: what it adds to the gates, and the weights of the rest, [h, motion].

    The context is the same in all steps of a refinement, a third of what the convolutions read in RAFT.
    """

    weight_zr: torch.Tensor  # of both gates, one convolution
    weight_q: torch.Tensor
    context_zr: torch.Tensor  # biases included
    context_q: torch.Tensor
    padding: str | tuple[int, ...]

    @classmethod
    def of(cls, context: torch.Tensor, convz: nn.Conv2d, convr: nn.Conv2d, convq: nn.Conv2d) -> "ContextPass":
        padding, hidden, end = convz.padding, convz.out_channels, convz.out_channels + context.shape[1]
        zr, q = torch.cat([convz.weight, convr.weight]), convq.weight
        assert convz.bias is not None
        assert convr.bias is not None
        bias_zr = torch.cat([convz.bias, convr.bias])
        channels_last = context.is_contiguous(memory_format=torch.channels_last)  # else every step reorders them
        layout = torch.channels_last if channels_last else torch.contiguous_format
        return cls(
            torch.cat([zr[:, :hidden], zr[:, end:]], dim=1).contiguous(memory_format=layout),
            torch.cat([q[:, :hidden], q[:, end:]], dim=1).contiguous(memory_format=layout),
            F.conv2d(context, zr[:, hidden:end], bias_zr, padding=padding),
            F.conv2d(context, q[:, hidden:end], convq.bias, padding=padding),
            padding,
        )

    def __call__(self, h: torch.Tensor, hx: torch.Tensor) -> torch.Tensor:
        """The new h; hx = [h, motion] is overwritten where no gradient is asked for: fresh memory costs a copy."""
        z, r = F.conv2d(hx, self.weight_zr, padding=self.padding).add_(self.context_zr).sigmoid_().chunk(2, dim=1)
        q = F.conv2d(with_hidden(hx, r * h), self.weight_q, padding=self.padding).add_(self.context_q).tanh_()
        if torch.is_grad_enabled() or q.dtype != h.dtype:
            return h + z * (q - h)
        return q.sub_(h).mul_(z).add_(h)


def with_hidden(hx: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    """hx with its first channels replaced by h; hx itself where no gradient is asked for."""
    if torch.is_grad_enabled():
        return torch.cat([h, hx[:, h.shape[1] :]], dim=1)
    hx[:, : h.shape[1]] = h
    return hx


class _GRU(nn.Module):
    """One or two passes. ``forward(h, x)`` is a step on its own; of many with one context, ``begin`` does the rest."""

    passes: tuple[str, ...]  # suffixes of convz, convr, convq

    def begin(self, context: torch.Tensor) -> list[ContextPass]:
        """Everything that depends on the context alone, for any number of :meth:`step`.

        Shapes:
            context [B, C, H, W], the first C channels of x.
        """
        return [
            ContextPass.of(context, *(getattr(self, f"conv{gate}{suffix}") for gate in "zrq")) for suffix in self.passes
        ]

    def step(self, h: torch.Tensor, context: list[ContextPass], motion: torch.Tensor) -> torch.Tensor:
        """The new h; motion [B, input_dim - C, H, W] are the other channels of x."""
        hx = torch.cat([h, motion], dim=1)
        for index, context_pass in enumerate(context):
            h = context_pass(h, hx if index == 0 else with_hidden(hx, h))
        return h

    def forward(self, h: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self.step(h, self.begin(x), x[:, :0])


class ConvGRU(_GRU):
    """GRU with 3x3 convolutions (small model).

    Shapes:
        h [B, hidden_dim, H, W], x [B, input_dim, H, W], one dtype. Returns the new h.
    """

    passes = ("",)

    def __init__(self, hidden_dim: int = 128, input_dim: int = 192 + 128):
        super().__init__()
        self.convz = nn.Conv2d(hidden_dim + input_dim, hidden_dim, 3, padding=1)
        self.convr = nn.Conv2d(hidden_dim + input_dim, hidden_dim, 3, padding=1)
        self.convq = nn.Conv2d(hidden_dim + input_dim, hidden_dim, 3, padding=1)


class SepConvGRU(_GRU):
    """A GRU with 1x5 convolutions, then one with 5x1 (large model). Shapes as :class:`ConvGRU`."""

    passes = ("1", "2")

    def __init__(self, hidden_dim: int = 128, input_dim: int = 192 + 128):
        super().__init__()
        planes = hidden_dim + input_dim
        self.convz1 = nn.Conv2d(planes, hidden_dim, (1, 5), padding=(0, 2))
        self.convr1 = nn.Conv2d(planes, hidden_dim, (1, 5), padding=(0, 2))
        self.convq1 = nn.Conv2d(planes, hidden_dim, (1, 5), padding=(0, 2))
        self.convz2 = nn.Conv2d(planes, hidden_dim, (5, 1), padding=(2, 0))
        self.convr2 = nn.Conv2d(planes, hidden_dim, (5, 1), padding=(2, 0))
        self.convq2 = nn.Conv2d(planes, hidden_dim, (5, 1), padding=(2, 0))
