"""The update operator: motion encoder, GRU and heads, with the names of the official checkpoints."""

import torch
from torch import nn

from .gru import ContextPass, ConvGRU, SepConvGRU
from .heads import FlowHead, MaskHead
from .motion_encoder import BasicMotionEncoder, SmallMotionEncoder


class _UpdateBlock(nn.Module):
    """One refinement step: looks at the correlation window, updates the hidden state, proposes a change of the flow."""

    encoder: nn.Module
    gru: ConvGRU | SepConvGRU
    flow_head: nn.Module

    def begin(self, inp: torch.Tensor) -> list[ContextPass]:
        """What all steps of a refinement do with the context; give it to :meth:`forward` for ``inp`` in every step."""
        return self.gru.begin(inp)

    def forward(
        self, net: torch.Tensor, inp: torch.Tensor | list[ContextPass], corr: torch.Tensor, flow: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The new hidden state and the change of the flow.

        Shapes:
            net [B, hidden_dim, H, W], inp [B, context_dim, H, W] (or what :meth:`begin` made of it), corr
            [B, corr_planes, H, W], flow [B, 2, H, W], all of one dtype. Returns net and delta_flow [B, 2, H, W].
        Units:
            flow and delta_flow in pixels of the H x W grid.
        """
        context = self.begin(inp) if isinstance(inp, torch.Tensor) else inp
        net = self.gru.step(net, context, self.encoder(flow, corr))
        return net, self.flow_head(net)


class BasicUpdateBlock(_UpdateBlock):
    """Update operator of the large model; ``mask(net)`` gives the logits for ``convex_upsample``."""

    def __init__(self, corr_planes: int, hidden_dim: int = 128, context_dim: int = 128):
        super().__init__()
        self.encoder = BasicMotionEncoder(corr_planes)
        self.gru = SepConvGRU(hidden_dim, context_dim + self.encoder.output_dim)
        self.flow_head = FlowHead(hidden_dim, hidden_dim=256)
        self.mask = MaskHead(hidden_dim)


class SmallUpdateBlock(_UpdateBlock):
    """Update operator of the small model, which upsamples bilinearly and has no mask."""

    def __init__(self, corr_planes: int, hidden_dim: int = 96, context_dim: int = 64):
        super().__init__()
        self.encoder = SmallMotionEncoder(corr_planes)
        self.gru = ConvGRU(hidden_dim, context_dim + self.encoder.output_dim)
        self.flow_head = FlowHead(hidden_dim, hidden_dim=128)
