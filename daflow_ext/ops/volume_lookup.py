"""volume_lookup: RAFT's correlation window, read from a stored all-pairs volume."""

from collections.abc import Sequence
from typing import Any

import torch

from . import _check
from ._dispatch import implementation, register, register_backward


def volume_lookup(
    volume_pyramid: Sequence[torch.Tensor],
    coords: torch.Tensor,
    radius: int | Sequence[int],
    *,
    order: str = "xy",
    out_dtype: torch.dtype = torch.float32,
    backend: str = "auto",
) -> torch.Tensor:
    """The window of :func:`corr_lookup` where the products are already stored: one fused pass, no grid_sample.

    Worth its memory on small grids with many iterations; :class:`daflow_ext.CorrBlock` decides.

    Equivalent to: ``corr_lookup`` where ``volume_pyramid[l][b, y, x]`` is ``scale * <fmap1[b, :, y, x],
    fmap2_pyramid[l][b]>``.

    Shapes:
        volume_pyramid: L tensors [B, H, W, H_l, W_l], any strides.
        coords: [B, 2, H, W] or [B, N, 2, H, W]; returns [B, L*n*n, H, W] or [B, N, L*n*n, H, W], contiguous.
    Units:
        coords in pixels of level 0, channel 0 = x to the right, channel 1 = y down, float32.
    Gradients: every level of the volume, coords; deterministic.
    Raises:
        ValueError, TypeError: wrong rank, sizes, dtypes or devices that disagree, coords in half precision.
        RuntimeError: the named backend cannot run.
    Source: RAFT (Teed & Deng, ECCV 2020, arXiv 2003.12039), section 3.2.
    """
    if isinstance(volume_pyramid, torch.Tensor) or len(volume_pyramid) == 0:
        raise TypeError("volume_lookup: volume_pyramid must be a non-empty list of tensors")
    first = volume_pyramid[0]
    for level, volume in enumerate(volume_pyramid):
        name = f"volume_pyramid[{level}]"
        _check.floating("volume_lookup", name, volume, 5, "[B, H, W, H_l, W_l]")
        _check.same("volume_lookup", "volume_pyramid[0]", first, name, volume)
        if volume.shape[:3] != first.shape[:3]:
            raise ValueError(
                f"volume_lookup: {name} is {_check.spell(volume)} but volume_pyramid[0] is {_check.spell(first)}; "
                "B, H and W must agree"
            )
    _check.coordinates("volume_lookup", coords, "volume_pyramid[0]", first)
    if coords.shape[-2:] != first.shape[1:3]:
        raise ValueError(
            f"volume_lookup: coords is {_check.spell(coords)} but volume_pyramid[0] is {_check.spell(first)}"
        )
    radius = _check.radius_pair("volume_lookup", radius)
    _check.window_order("volume_lookup", order)
    _check.output_dtype("volume_lookup", out_dtype, first.device)
    run = implementation("volume_lookup", backend, first.device)
    return run(volume_pyramid, coords, radius, order=order, out_dtype=out_dtype)


def _fake(
    volume_pyramid: Sequence[torch.Tensor],
    coords: torch.Tensor,
    radius: Sequence[int],
    order: str = "xy",
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    window = (2 * radius[0] + 1) * (2 * radius[1] + 1) * len(volume_pyramid)
    return coords.new_empty((*coords.shape[:-3], window, *coords.shape[-2:]), dtype=out_dtype or torch.float32)


def _setup_context(ctx: Any, inputs: tuple, keyword_only_inputs: dict, output: Any) -> None:
    volume_pyramid, coords, radius = inputs
    ctx.save_for_backward(coords, *volume_pyramid)
    ctx.radius, ctx.order = radius, keyword_only_inputs["order"]
    ctx.volume_needs_grad = any(level.requires_grad for level in volume_pyramid)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple:
    coords, *volume_pyramid = ctx.saved_tensors
    grad_coords, *grad_volume = torch.ops.daflow_ext.volume_lookup_backward(
        grad,
        volume_pyramid,
        coords,
        ctx.radius,
        order=ctx.order,
        need_volume=ctx.volume_needs_grad,
        need_coords=ctx.needs_input_grad[1],
    )
    return (
        grad_volume if ctx.volume_needs_grad else [None] * len(volume_pyramid),
        grad_coords if ctx.needs_input_grad[1] else None,
        None,
    )


def _backward_fake(
    grad: torch.Tensor,
    volume_pyramid: Sequence[torch.Tensor],
    coords: torch.Tensor,
    radius: Sequence[int],
    order: str,
    need_volume: bool,
    need_coords: bool,
) -> list[torch.Tensor]:
    # an output that is not needed has no elements
    grads = [coords.new_empty(coords.shape) if need_coords else coords.new_empty(0)]
    return grads + ([volume.new_empty(volume.shape) for volume in volume_pyramid] if need_volume else [])


register("volume_lookup", _fake, _backward, _setup_context)
register_backward("volume_lookup", _backward_fake)
