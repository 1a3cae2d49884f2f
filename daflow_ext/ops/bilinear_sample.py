"""bilinear_sample: the one gather core, in pixel coordinates."""

from typing import Any

import torch

from ..reference import inside_mask
from . import _check
from ._dispatch import empty_channels_last, implementation, register, register_backward


def bilinear_sample(
    feat: torch.Tensor,
    coords: torch.Tensor,
    *,
    padding: str = "zeros",
    groups: int = 1,
    sharpness: int = 1,
    mask: bool = False,
    backend: str = "auto",
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """feat read at real-valued pixel positions, four taps each.

    With x0 = floor(x), t = x - x0 the right tap weighs ``clamp(s (t - 1/2) + 1/2, 0, 1)`` with s = ``sharpness``
    (s = 1: t itself, plain bilinear; larger: towards nearest), likewise in y. Taps outside count zero
    (``padding="zeros"``) or are moved to the edge (``"border"``). Non-finite coordinates give zeros.

    Equivalent to: ``F.grid_sample(feat, grid, align_corners=True, padding_mode=padding)`` wherever that is finite (it
    divides by W - 1 and H - 1; this op does not). With ``sharpness=s`` and ``coords = (p + 1/2) / s - 1/2`` for
    positions p on an s-times larger grid: nearest upsampling by s, bilinear sampling there.

    Shapes:
        feat: [B, C, H, W], any strides. coords: [B, 2, Ho, Wo], or [B, G, 2, Ho, Wo] with ``groups=G``: group g of
        C / G consecutive channels is read at coords[:, g]. Returns [B, C, Ho, Wo] in the dtype of feat, channels_last
        in memory if feat is; with ``mask=True`` also bool [B, G, Ho, Wo], True where 0 <= x <= W-1 and 0 <= y <= H-1.
    Units:
        coords in pixels of feat, channel 0 = x to the right, channel 1 = y down, float32.
    Gradients: feat and coords (the latter zero where the ramp is flat).
    Raises:
        ValueError, TypeError: wrong rank, sizes, dtypes or devices that disagree, coords in half precision.
        RuntimeError: the named backend cannot run.
    Source: RAFT's bilinear_sampler in pixel units; the ramp is the closed form of DGAF-VSR's upsample-warp-downsample
        (arXiv 2511.16928).
    """
    _check.floating("bilinear_sample", "feat", feat, 4, "[B, C, H, W]")
    _check.coordinates("bilinear_sample", coords, "feat", feat)
    if padding not in ("zeros", "border"):
        raise ValueError(f"bilinear_sample: padding must be 'zeros' or 'border', got {padding!r}")
    if not isinstance(groups, int) or groups < 1 or feat.shape[1] % groups:
        raise ValueError(f"bilinear_sample: groups must divide the {feat.shape[1]} channels of feat, got {groups!r}")
    if (coords.shape[1] if coords.dim() == 5 else 1) != groups:
        raise ValueError(
            f"bilinear_sample: groups={groups} needs coords [B, {groups}, 2, Ho, Wo], got {_check.spell(coords)}"
        )
    if not isinstance(sharpness, int) or sharpness < 1:
        raise ValueError(f"bilinear_sample: sharpness must be an integer >= 1, got {sharpness!r}")
    run = implementation("bilinear_sample", backend, feat.device)
    out = run(feat, coords, padding=padding, groups=groups, sharpness=sharpness)
    return (out, inside_mask(coords, *feat.shape[-2:])) if mask else out


def _empty_like_feat(feat: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """[B, C, height, width], channels_last in memory if feat is (the rule of the kernels)."""
    batch, channels = feat.shape[:2]
    if channels > 1 and feat.stride(1) == 1:
        return empty_channels_last(feat, batch, channels, height, width)
    return feat.new_empty((batch, channels, height, width))


def _fake(
    feat: torch.Tensor, coords: torch.Tensor, padding: str = "zeros", groups: int = 1, sharpness: int = 1
) -> torch.Tensor:
    return _empty_like_feat(feat, *coords.shape[-2:])


def _setup_context(ctx: Any, inputs: tuple, keyword_only_inputs: dict, output: Any) -> None:
    ctx.save_for_backward(*inputs)
    ctx.options = keyword_only_inputs


def _backward(ctx: Any, grad: torch.Tensor) -> tuple:
    feat, coords = ctx.saved_tensors
    need_feat, need_coords = ctx.needs_input_grad[:2]
    grad_feat, grad_coords = torch.ops.daflow_ext.bilinear_sample_backward(
        grad,
        feat,
        coords,
        **ctx.options,
        need_feat=need_feat,
        need_coords=need_coords,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )
    return grad_feat if need_feat else None, grad_coords if need_coords else None


def _backward_fake(
    grad: torch.Tensor,
    feat: torch.Tensor,
    coords: torch.Tensor,
    padding: str,
    groups: int,
    sharpness: int,
    need_feat: bool,
    need_coords: bool,
    deterministic: bool,
) -> list[torch.Tensor]:
    # an output that is not needed has no elements
    return [
        _empty_like_feat(feat, *feat.shape[-2:]) if need_feat else feat.new_empty(0),
        coords.new_empty(coords.shape) if need_coords else coords.new_empty(0),
    ]


register("bilinear_sample", _fake, _backward, _setup_context)
register_backward("bilinear_sample", _backward_fake)
