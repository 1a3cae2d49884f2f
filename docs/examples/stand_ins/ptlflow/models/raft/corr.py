"""Stands in for ptlflow's correlation block of RAFT: every pair of pixels stored."""

import torch

from daflow_ext import CorrBlock


def get_corr_block(
    fmap1: torch.Tensor, fmap2: torch.Tensor, num_levels: int = 4, radius: int = 4, alternate_corr: bool = False
) -> CorrBlock:
    return CorrBlock(fmap1, fmap2, num_levels, radius, memory="volume", backend="reference")
