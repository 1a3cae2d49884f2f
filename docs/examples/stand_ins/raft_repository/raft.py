"""Stands in for RAFT's core/raft.py: its constructor, call and output around a tiny network. Not RAFT's code."""

import argparse

import torch
import torch.nn.functional as F
from corr import AlternateCorrBlock, CorrBlock


class RAFT(torch.nn.Module):
    def __init__(self, args: argparse.Namespace):
        super().__init__()
        self.args = args
        self.fnet = torch.nn.Conv2d(3, 32, 8, stride=8)
        self.head = torch.nn.Conv2d(4 * 7 * 7, 2, 3, padding=1)

    def forward(
        self, image1: torch.Tensor, image2: torch.Tensor, iters: int = 12, test_mode: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor] | list[torch.Tensor]:
        fmap1, fmap2 = self.fnet(image1 / 255 - 0.5), self.fnet(image2 / 255 - 0.5)
        block = AlternateCorrBlock if self.args.alternate_corr else CorrBlock
        corr_fn = block(fmap1, fmap2, radius=3)
        y, x = torch.meshgrid(*(torch.arange(float(side)) for side in fmap1.shape[-2:]), indexing="ij")
        coords0 = torch.stack((x, y))[None].to(fmap1)
        coords1, flows = coords0, []
        for _ in range(iters):
            coords1 = coords1 + self.head(corr_fn(coords1.detach()))
            flows.append(8 * F.interpolate(coords1 - coords0, scale_factor=8, mode="bilinear", align_corners=True))
        return (coords1 - coords0, flows[-1]) if test_mode else flows
