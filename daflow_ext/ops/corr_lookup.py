"""corr_lookup: RAFT's correlation window, computed on the fly from the feature maps."""

from collections.abc import Sequence
from typing import Any

import torch

from .. import reference
from . import _check
from ._dispatch import empty_channels_last, implementation, register, register_backward


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
    backend: str = "auto",
) -> torch.Tensor:
    """Correlation of every pixel of fmap1 with a window of fmap2 around its coordinate; no volume is ever stored.

    With n = 2 radius + 1, channel ``l*n*n + a*n + b`` at pixel p is ``scale`` times the bilinear sample, zero outside,
    of ``<fmap1[:, p], fmap2_pyramid[l][:, q]>`` at ``q = (x/2^l + a - radius, y/2^l + b - radius)``: with the default
    ``order="xy"`` the slow window index moves x, as in RAFT and all its checkpoints; ``order="yx"`` swaps a and b.
    Products accumulate in float32 (float64 for float64 features) and are scaled before rounding to ``out_dtype``.
    On CUDA float16 and bfloat16 features are multiplied on tensor cores; float32 features exactly, or there in tf32
    where torch allows it (``torch.backends.cuda.matmul.allow_tf32 = True``).
    Non-finite coordinates, and coordinates far outside, give zeros.

    Equivalent to: ``RAFT.CorrBlock(fmap1, fmap2, num_levels, radius)(coords)`` with
    ``fmap2_pyramid = corr_pyramid(fmap2, num_levels)``, and finite where a level has a side of 1.

    Shapes:
        fmap1: [B, C, H, W], any strides (CUDA, and the backward, copy it once where it is not channels_last).
        fmap2_pyramid: L tensors [B, C, H_l, W_l], any sizes; same remark.
        coords: [B, 2, H, W], or [B, N, 2, H, W] for N centres per query pixel.
        returns [B, L*n*n, H, W] or [B, N, L*n*n, H, W], contiguous, or with the window densest in memory if
        ``channels_last`` (what a 1x1 convolution reads fastest). With a pair of radii n*n is (2 rx + 1)(2 ry + 1). A
        stereo window is ``radius=(0, r)``.
    Units:
        coords in pixels of level 0, channel 0 = x to the right, channel 1 = y down, float32 (autocast leaves it so).
    Args:
        radius: integer, or a pair (radius_y, radius_x).
        scale: factor of the products, 1/sqrt(C) by default.
    Gradients: fmap1, every level of fmap2_pyramid, coords; deterministic on the CPU.
    Raises:
        ValueError, TypeError: wrong rank, sizes, dtypes or devices that disagree, coords in half precision.
        RuntimeError: the named backend cannot run.
    Source: RAFT (Teed & Deng, ECCV 2020, arXiv 2003.12039), section 3.2 "efficient computation".
    """
    _check.floating("corr_lookup", "fmap1", fmap1, 4, "[B, C, H, W]")
    if isinstance(fmap2_pyramid, torch.Tensor) or len(fmap2_pyramid) == 0:
        raise TypeError("corr_lookup: fmap2_pyramid must be a non-empty list of tensors; see corr_pyramid")
    for level, fmap2 in enumerate(fmap2_pyramid):
        name = f"fmap2_pyramid[{level}]"
        _check.floating("corr_lookup", name, fmap2, 4, "[B, C, H_l, W_l]")
        _check.same("corr_lookup", "fmap1", fmap1, name, fmap2)
        if fmap2.shape[:2] != fmap1.shape[:2]:
            raise ValueError(
                f"corr_lookup: {name} is {_check.spell(fmap2)} but fmap1 is {_check.spell(fmap1)}; "
                "batch and channels must agree"
            )
    _check.coordinates("corr_lookup", coords, "fmap1", fmap1)
    if coords.shape[-2:] != fmap1.shape[-2:]:
        raise ValueError(f"corr_lookup: coords is {_check.spell(coords)} but fmap1 is {_check.spell(fmap1)}")
    radius = _check.radius_pair("corr_lookup", radius)
    _check.window_order("corr_lookup", order)
    _check.output_dtype("corr_lookup", out_dtype, fmap1.device)
    options = {"scale": scale, "order": order, "out_dtype": out_dtype, "channels_last": channels_last}
    run = implementation("corr_lookup", backend, fmap1.device)
    if run is not reference.corr_lookup:
        options["allow_tf32"] = fmap1.is_cuda and _tf32_is_allowed()
    return run(fmap1, fmap2_pyramid, coords, radius, **options)


def _tf32_is_allowed() -> bool:
    return torch.backends.cuda.matmul.fp32_precision == "tf32"  # what allow_tf32 and its successors set


# torch.compiler.assume_constant_result without its import of torch._dynamo; torch.compile guards on the setting itself
_tf32_is_allowed._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _fake(
    fmap1: torch.Tensor,
    fmap2_pyramid: Sequence[torch.Tensor],
    coords: torch.Tensor,
    radius: Sequence[int],
    scale: float | None = None,
    order: str = "xy",
    out_dtype: torch.dtype | None = None,
    channels_last: bool = False,
    allow_tf32: bool = False,
) -> torch.Tensor:
    window = (2 * radius[0] + 1) * (2 * radius[1] + 1) * len(fmap2_pyramid)
    outer, inner = coords.shape[:-3], coords.shape[-2:]
    dtype = out_dtype or torch.float32
    if channels_last:
        return fmap1.new_empty((*outer, *inner, window), dtype=dtype).movedim(-1, -3)
    return fmap1.new_empty((*outer, window, *inner), dtype=dtype)


def _setup_context(ctx: Any, inputs: tuple, keyword_only_inputs: dict, output: Any) -> None:
    fmap1, fmap2_pyramid, coords, radius = inputs
    ctx.save_for_backward(fmap1, coords, *fmap2_pyramid)
    ctx.radius, ctx.scale, ctx.order = radius, keyword_only_inputs["scale"], keyword_only_inputs["order"]
    ctx.allow_tf32 = keyword_only_inputs["allow_tf32"]
    ctx.pyramid_needs_grad = any(level.requires_grad for level in fmap2_pyramid)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple:
    fmap1, coords, *fmap2_pyramid = ctx.saved_tensors
    grad_fmap1, grad_coords, *grad_pyramid = torch.ops.daflow_ext.corr_lookup_backward(
        grad,
        fmap1,
        fmap2_pyramid,
        coords,
        ctx.radius,
        scale=ctx.scale,
        order=ctx.order,
        need_fmap1=ctx.needs_input_grad[0],
        need_pyramid=ctx.pyramid_needs_grad,
        need_coords=ctx.needs_input_grad[2],
        deterministic=torch.are_deterministic_algorithms_enabled(),
        allow_tf32=ctx.allow_tf32,
    )
    return (
        grad_fmap1 if ctx.needs_input_grad[0] else None,
        grad_pyramid if ctx.pyramid_needs_grad else [None] * len(fmap2_pyramid),
        grad_coords if ctx.needs_input_grad[2] else None,
        None,
    )


def _backward_fake(
    grad: torch.Tensor,
    fmap1: torch.Tensor,
    fmap2_pyramid: Sequence[torch.Tensor],
    coords: torch.Tensor,
    radius: Sequence[int],
    scale: float | None,
    order: str,
    need_fmap1: bool,
    need_pyramid: bool,
    need_coords: bool,
    deterministic: bool,
    allow_tf32: bool = False,
) -> list[torch.Tensor]:
    # channels_last feature gradients; an output that is not needed has no elements
    grads = [
        empty_channels_last(fmap1, *fmap1.shape) if need_fmap1 else fmap1.new_empty(0),
        coords.new_empty(coords.shape) if need_coords else coords.new_empty(0),
    ]
    return grads + ([empty_channels_last(level, *level.shape) for level in fmap2_pyramid] if need_pyramid else [])


register("corr_lookup", _fake, _backward, _setup_context)
register_backward("corr_lookup", _backward_fake)
