"""GMA (zacjiang/GMA): in ``core/network.py`` replace ``from corr import CorrBlock`` with
``from daflow_ext import CorrBlock``; where a fork uses ``CorrBlockSingleScale``, import it from here.
"""

import torch

from ..block import CorrBlock


class CorrBlockSingleScale(CorrBlock):
    """``CorrBlockSingleScale(fmap1, fmap2, num_levels, radius)``: the full-resolution level only.

    ``num_levels`` is accepted for the signature and unused, as in the original. Output [B, (2 radius + 1)^2, H, W].
    Everything else is as for :class:`daflow_ext.CorrBlock`.

    Source: GMA (Jiang et al., ICCV 2021, arXiv 2104.02409).
    """

    def __init__(
        self,
        fmap1: torch.Tensor,
        fmap2: torch.Tensor,
        num_levels: int = 4,
        radius: int = 4,
        *,
        memory: str = "auto",
        backend: str = "auto",
    ):
        super().__init__(fmap1, fmap2, 1, radius, memory=memory, backend=backend)
