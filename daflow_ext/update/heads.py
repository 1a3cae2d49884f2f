"""Heads on the hidden state: the change of the flow, and the weights of its convex upsampling."""

import torch
import torch.nn.functional as F
from torch import nn


class FlowHead(nn.Module):
    """Hidden state [B, input_dim, H, W] to the change of the flow [B, 2, H, W], in pixels of the H x W grid."""

    def __init__(self, input_dim: int = 128, hidden_dim: int = 256):
        super().__init__()
        self.conv1 = nn.Conv2d(input_dim, hidden_dim, 3, padding=1)
        self.conv2 = nn.Conv2d(hidden_dim, 2, 3, padding=1)

    def forward(self, net: torch.Tensor) -> torch.Tensor:
        return self.conv2(F.relu(self.conv1(net), inplace=True))


class MaskHead(nn.Sequential):
    """Hidden state [B, input_dim, H, W] to upsampling logits [B, 9 * factor^2, H, W]; see ``convex_upsample``."""

    def __init__(self, input_dim: int = 128, hidden_dim: int = 256, factor: int = 8):
        super().__init__(
            nn.Conv2d(input_dim, hidden_dim, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden_dim, 9 * factor**2, 1),
        )

    def forward(self, net: torch.Tensor) -> torch.Tensor:
        # 0.25 balances the gradients of this branch (RAFT); trained weights rely on it
        return 0.25 * super().forward(net)
