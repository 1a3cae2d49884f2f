"""Reference of ``volume_lookup``: the window read from a stored correlation volume."""

from collections.abc import Sequence

import torch


def volume_lookup(
    volume_pyramid: Sequence[torch.Tensor],
    coords: torch.Tensor,
    radius: int | Sequence[int],
    *,
    order: str = "xy",
    out_dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Bilinear (2r+1)^2 windows of every level; see :func:`daflow_ext.ops.volume_lookup`."""
    radius_y, radius_x = (radius, radius) if isinstance(radius, int) else radius
    centres = coords.unsqueeze(1) if coords.dim() == 4 else coords  # [B, N, 2, H, W]
    outputs = []
    for index, volume in enumerate(volume_pyramid):  # [B, H, W, H_l, W_l]
        x, y = (centres / 2**index).unbind(2)  # [B, N, H, W]
        window = _level_window(volume, x, y, radius_x, radius_y)  # [B, N, H, W, nx, ny]
        if order == "yx":
            window = window.transpose(-1, -2)
        outputs.append(window.flatten(-2).permute(0, 1, 4, 2, 3))
    out = torch.cat(outputs, dim=2).to(out_dtype)  # [B, N, L*n*n, H, W]
    return (out[:, 0] if coords.dim() == 4 else out).contiguous()


def _level_window(volume: torch.Tensor, x: torch.Tensor, y: torch.Tensor, radius_x: int, radius_y: int) -> torch.Tensor:
    """sum of the four integer taps around (x + i, y + j), weighted; taps outside the level are zero."""
    batch, height, width, level_height, level_width = volume.shape
    accumulate = torch.float64 if volume.dtype == torch.float64 else torch.float32
    column, weight_x = _taps(x.to(accumulate), radius_x, level_width)  # [B, N, H, W, nx+1], [B, N, H, W]
    row, weight_y = _taps(y.to(accumulate), radius_y, level_height)
    live = (x.isfinite() & y.isfinite())[..., None, None]
    inside = (
        live
        & ((column >= 0) & (column < level_width))[..., :, None]
        & ((row >= 0) & (row < level_height))[..., None, :]
    )
    if level_height * level_width == 0:
        return volume.new_zeros((*x.shape, 2 * radius_x + 1, 2 * radius_y + 1), dtype=accumulate)
    index = row.clamp(0, level_height - 1)[..., None, :] * level_width + column.clamp(0, level_width - 1)[..., :, None]
    centres, taps = x.shape[1], index.shape[-2:]
    flat = volume.reshape(batch * height * width, level_height * level_width)
    index = index.permute(0, 2, 3, 1, 4, 5).reshape(batch * height * width, centres * taps.numel())
    patch = flat.gather(1, index).reshape(batch, height, width, centres, *taps).permute(0, 3, 1, 2, 4, 5)
    patch = torch.where(inside, patch.to(accumulate), 0.0)  # [B, N, H, W, nx+1, ny+1]
    wx, wy = weight_x[..., None, None], weight_y[..., None, None]
    along_x = (1 - wx) * patch[..., :-1, :] + wx * patch[..., 1:, :]
    return (1 - wy) * along_x[..., :-1] + wy * along_x[..., 1:]


def _taps(position: torch.Tensor, radius: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Integer taps floor(position) - r ... floor(position) + r + 1, and the fraction that blends neighbours."""
    # Outside by more than the window everything is zero, so clamping there changes nothing and keeps integers small.
    position = torch.where(position.isfinite(), position, -1.0 - radius).clamp(-2 - radius, size + 1 + radius)
    first = position.detach().floor()
    offsets = torch.arange(-radius, radius + 2, device=position.device)
    return first.long()[..., None] + offsets, position - first
