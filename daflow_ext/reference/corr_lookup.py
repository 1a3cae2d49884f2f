"""Reference of ``corr_lookup``: all-pairs products, then the window of every query."""

from collections.abc import Sequence

import torch

from .volume_lookup import volume_lookup

_SLAB = 2**26  # volume elements alive at once; larger grids are done in bands of query rows


def corr_lookup(
    fmap1: torch.Tensor,
    fmap2_pyramid: Sequence[torch.Tensor],
    coords: torch.Tensor,
    radius: int | Sequence[int],
    *,
    scale: float | None = None,
    order: str = "xy",
    out_dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> torch.Tensor:
    """<fmap1[p], fmap2_l[q]> * scale, looked up around coords / 2^l; see :func:`daflow_ext.ops.corr_lookup`."""
    scale = fmap1.shape[1] ** -0.5 if scale is None else scale
    accumulate = torch.float64 if fmap1.dtype == torch.float64 else torch.float32
    height, width = fmap1.shape[-2:]
    pixels2 = max(sum(level.shape[-2] * level.shape[-1] for level in fmap2_pyramid), 1)
    rows = max(1, _SLAB // max(fmap1.shape[0] * width * pixels2, 1))
    bands = []
    for top in range(0, max(height, 1), rows):
        band = slice(top, top + rows)
        volumes = [
            torch.einsum("bchw,bcuv->bhwuv", fmap1[:, :, band].to(accumulate), level.to(accumulate)) * scale
            for level in fmap2_pyramid
        ]
        bands.append(volume_lookup(volumes, coords[..., band, :], radius, order=order, out_dtype=out_dtype))
    out = torch.cat(bands, dim=-2)
    return out.movedim(-3, -1).contiguous().movedim(-1, -3) if channels_last else out
