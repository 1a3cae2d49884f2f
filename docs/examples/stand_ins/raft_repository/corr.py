"""Stands in for RAFT's core/corr.py: the same class and call, every pair of pixels stored. Not RAFT's code."""

import torch

from daflow_ext import reference


class CorrBlock:
    def __init__(self, fmap1: torch.Tensor, fmap2: torch.Tensor, num_levels: int = 4, radius: int = 4):
        self.radius = radius
        levels = reference.corr_pyramid(fmap2, num_levels)
        scale = fmap1.shape[1] ** -0.5
        self.volumes = [torch.einsum("bchw,bcij->bhwij", fmap1, level) * scale for level in levels]

    def __call__(self, coords: torch.Tensor) -> torch.Tensor:
        return reference.volume_lookup(self.volumes, coords, self.radius)


class AlternateCorrBlock(CorrBlock):
    pass
