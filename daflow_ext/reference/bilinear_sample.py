"""Reference of ``bilinear_sample``: the four-tap gather in pixel coordinates."""

import torch


def bilinear_sample(
    feat: torch.Tensor,
    coords: torch.Tensor,
    *,
    padding: str = "zeros",
    groups: int = 1,
    sharpness: int = 1,
    mask: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """feat sampled at coords (x, y) in pixels; see :func:`daflow_ext.ops.bilinear_sample`."""
    batch, channels, height, width = feat.shape
    centres = coords.unsqueeze(1) if coords.dim() == 4 else coords  # [B, G, 2, Ho, Wo]
    accumulate = torch.float64 if feat.dtype == torch.float64 else torch.float32
    x, y = centres.to(accumulate).unbind(2)  # [B, G, Ho, Wo]
    live = x.isfinite() & y.isfinite()
    column, weight_x = _taps(torch.where(live, x, 0.0), width, padding, sharpness)
    row, weight_y = _taps(torch.where(live, y, 0.0), height, padding, sharpness)

    flat = feat.to(accumulate).reshape(batch, groups, channels // groups, height * width)
    out = flat.new_zeros((batch, groups, channels // groups, *x.shape[-2:]))
    if height * width > 0:
        for tap_y, wy in ((row, 1 - weight_y), (row + 1, weight_y)):
            for tap_x, wx in ((column, 1 - weight_x), (column + 1, weight_x)):
                keep = live
                if padding == "zeros":
                    keep = live & (tap_x >= 0) & (tap_x < width) & (tap_y >= 0) & (tap_y < height)
                index = tap_y.clamp(0, height - 1) * width + tap_x.clamp(0, width - 1)  # [B, G, Ho, Wo]
                index = index.flatten(2)[:, :, None].expand(-1, -1, channels // groups, -1)
                value = flat.gather(3, index).reshape(out.shape)
                out = out + torch.where(keep, wx * wy, 0.0)[:, :, None] * value
    out = out.reshape(batch, channels, *x.shape[-2:]).to(feat.dtype)
    return (out, inside_mask(coords, height, width)) if mask else out


def inside_mask(coords: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """True where 0 <= x <= W-1 and 0 <= y <= H-1: [B, 2, Ho, Wo] or [B, G, 2, Ho, Wo] -> bool [B, G, Ho, Wo]."""
    x, y = (coords.unsqueeze(1) if coords.dim() == 4 else coords).unbind(2)
    return (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)


def _taps(position: torch.Tensor, size: int, padding: str, sharpness: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Left tap and the weight of the right one: fraction t through the ramp clamp(s (t - 1/2) + 1/2, 0, 1)."""
    # zeros: two pixels outside everything is zero already; clamping keeps the integers small
    position = position.clamp(0, max(size - 1, 0)) if padding == "border" else position.clamp(-2, size + 1)
    first = position.detach().floor()
    weight = position - first
    if sharpness != 1:
        weight = (sharpness * (weight - 0.5) + 0.5).clamp(0, 1)
    return first.long(), weight
