"""Hybrid features: what a restoration transformer knows, on the grid and beside the features of RAFT's encoders.

With queries Q_k of frame k and keys K_{k+1} of the next frame, from the tapped layers l:

    F_k     = [E_img(I_k),     DPT_Q({Q_k^l})]          what looks for a match
    F_{k+1} = [E_img(I_{k+1}), DPT_K({K_{k+1}^l})]      where it is looked for
    ctx     = [E_ctx(I_k),     DPT_ctx({Q_k^l})]        of frame k alone

This module holds the right halves; :class:`daflow_ext.models.daflow.DAFlow` joins them with the left ones.
"""

from collections.abc import Sequence

import torch
from torch import nn

from .dense_head import BilinearHead, DenseHead

UPSAMPLINGS = ("dpt", "bilinear")


class HybridFeatures(nn.Module):
    """Three heads that share no parameter: on the queries and keys for matching, and on the queries for context.

    Args:
        token_channels: width of the tokens. match_channels: of the two maps to match. context_channels: of the third.
        channels, tap_channels, scales: of the DPT heads, see :class:`DenseHead`; bilinear ones use the number of
            scales only.
        upsampling: "dpt" or "bilinear".
    Raises:
        ValueError: unknown upsampling, and what the heads raise.
    Source: DA-Flow (arXiv 2603.23499), section 4.4.
    """

    def __init__(
        self,
        token_channels: int,
        match_channels: int,
        context_channels: int,
        *,
        channels: int = 256,
        tap_channels: Sequence[int] | None = None,
        scales: Sequence[float] = (1, 1, 2, 2),
        upsampling: str = "dpt",
    ):
        super().__init__()
        if upsampling not in UPSAMPLINGS:
            raise ValueError(f"upsampling must be one of {', '.join(UPSAMPLINGS)}, got {upsampling!r}")

        def head(out_channels: int) -> nn.Module:
            if upsampling == "bilinear":
                return BilinearHead(token_channels, out_channels, taps=len(scales))
            return DenseHead(token_channels, out_channels, channels=channels, tap_channels=tap_channels, scales=scales)

        self.query, self.key, self.context = head(match_channels), head(match_channels), head(context_channels)

    def forward(
        self, queries: Sequence[torch.Tensor], keys: Sequence[torch.Tensor], grid: tuple[int, int]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The diffusion halves of F_k, F_{k+1} and ctx; only the second one sees frame k + 1.

        Shapes:
            queries (of frame k), keys (of frame k + 1): per tapped layer [B, h * w, C], grid = (h, w). Returns
            [B, match_channels, 2h, 2w] twice and [B, context_channels, 2h, 2w].
        """
        return self.query(queries, grid), self.key(keys, grid), self.context(queries, grid)
