"""RAFT-Stereo (princeton-vl/RAFT-Stereo): in ``core/raft_stereo.py`` take ``CorrBlock1D``, instead of the original or
any of its faster variants, ``from daflow_ext.correlation.adapters import CorrBlock1D``.
"""

import torch

from ... import ops
from ...ops import _check


class CorrBlock1D:
    """Correlation along the rows: every pixel of fmap1 with a line of 2 radius + 1 positions of its row in fmap2.

    Channel ``l*n + dx + radius`` is the bilinear sample at ``x / 2^l + dx`` of the row of fmap2 pooled l times in
    width, over sqrt(C), zero outside. Never stores a volume; level widths of 1 or 0 work.

    Shapes:
        fmap1: [B, C, H, W]. fmap2: [B, C, H, W2], any W2. coords: [B, 1 or more, H, W] float32, channel 0 = x; other
        channels are not read. Returns float32 [B, num_levels * n, H, W], contiguous.
    Units:
        coords in pixels of fmap2.
    Gradients: fmap1, fmap2, coords (channel 0).
    Raises:
        ValueError, TypeError: shapes, dtypes or devices that disagree.
    Source: RAFT-Stereo (Lipson, Teed & Deng, 3DV 2021, arXiv 2109.07547).
    """

    def __init__(
        self, fmap1: torch.Tensor, fmap2: torch.Tensor, num_levels: int = 4, radius: int = 4, *, backend: str = "auto"
    ):
        _check.floating("CorrBlock1D", "fmap1", fmap1, 4, "[B, C, H, W]")
        _check.floating("CorrBlock1D", "fmap2", fmap2, 4, "[B, C, H, W2]")
        _check.same("CorrBlock1D", "fmap1", fmap1, "fmap2", fmap2)
        if fmap1.shape[:3] != fmap2.shape[:3] or 0 in fmap1.shape or 0 in fmap2.shape:
            raise ValueError(
                "CorrBlock1D: fmap1 and fmap2 must be [B, C, H, W] and [B, C, H, W2], not empty, "
                f"got {list(fmap1.shape)} and {list(fmap2.shape)}"
            )
        if not isinstance(num_levels, int) or num_levels < 1:
            raise ValueError(f"CorrBlock1D: num_levels must be an integer >= 1, got {num_levels!r}")
        self.num_levels, self.radius, self.backend = num_levels, radius, backend
        self.grid = (fmap1.shape[0], *fmap1.shape[-2:])
        self.fmap1 = _rows_as_batch(fmap1)
        self.fmap2_pyramid = [_rows_as_batch(fmap2)]
        level = self.fmap2_pyramid[0].to(torch.promote_types(fmap2.dtype, torch.float32))
        for _ in range(num_levels - 1):
            width = level.shape[-1] // 2
            level = (level[..., 0 : 2 * width : 2] + level[..., 1 : 2 * width : 2]) / 2
            self.fmap2_pyramid.append(level.to(fmap2.dtype))

    def __call__(self, coords: torch.Tensor) -> torch.Tensor:
        batch, height, width = self.grid
        if coords.dim() != 4 or (coords.shape[0], *coords.shape[2:]) != self.grid:
            raise ValueError(
                f"CorrBlock1D: coords must be [{batch}, 1 or more, {height}, {width}], got {list(coords.shape)}"
            )
        x = coords[:, 0].reshape(batch * height, 1, width)
        centres = torch.stack([x, torch.zeros_like(x)], dim=1)  # [B*H, 2, 1, W]: every row is an image of height 1
        out = ops.corr_lookup(self.fmap1, self.fmap2_pyramid, centres, (0, self.radius), backend=self.backend)
        return out.reshape(batch, height, -1, width).transpose(1, 2).contiguous()


def _rows_as_batch(fmap: torch.Tensor) -> torch.Tensor:
    """[B, C, H, W] -> [B*H, C, 1, W] with unit channel stride."""
    batch, channels, height, width = fmap.shape
    return fmap.permute(0, 2, 3, 1).reshape(batch * height, 1, width, channels).permute(0, 3, 1, 2)
