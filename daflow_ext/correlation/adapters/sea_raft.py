"""SEA-RAFT (princeton-vl/SEA-RAFT): in ``core/raft.py`` replace ``from corr import CorrBlock`` with
``from daflow_ext.correlation.adapters import SeaRaftCorrBlock as CorrBlock``.
"""

import torch

from ..block import CorrBlock


class SeaRaftCorrBlock(CorrBlock):
    """``CorrBlock(fmap1, fmap2, args)(coords, dilation=None)`` as SEA-RAFT builds and calls it.

    SEA-RAFT halves fmap2 by bilinear interpolation, which is average pooling exactly; it fails where a side has
    become 1, this does not. ``dilation`` [B, 1, H, W] multiplies the window offsets of each pixel; SEA-RAFT always
    passes ones, which is noticed once per tensor and costs nothing after that.

    Args:
        args: anything with the integers ``corr_levels`` and ``corr_radius``.
        memory, backend: as for :class:`daflow_ext.CorrBlock`.
    Shapes, units, gradients, errors: as for :class:`daflow_ext.CorrBlock`.
    Source: SEA-RAFT (Wang, Lipson & Deng, ECCV 2024, arXiv 2405.14793).
    """

    def __init__(
        self, fmap1: torch.Tensor, fmap2: torch.Tensor, args: object, *, memory: str = "auto", backend: str = "auto"
    ):
        if not (hasattr(args, "corr_levels") and hasattr(args, "corr_radius")):
            raise TypeError(
                f"SeaRaftCorrBlock: args must have the fields corr_levels and corr_radius, got {type(args).__name__}"
            )
        super().__init__(fmap1, fmap2, args.corr_levels, args.corr_radius, memory=memory, backend=backend)
