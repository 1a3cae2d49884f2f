"""corr_pyramid: channels-last average-pooled levels of fmap2 in one pass."""

from collections.abc import Sequence
from typing import Any

import torch

from . import _check
from ._dispatch import empty_channels_last, implementation, register, register_backward

_MOST_LEVELS = 62


def corr_pyramid(
    fmap2: torch.Tensor, num_levels: int = 4, *, out_dtype: torch.dtype | None = None, backend: str = "auto"
) -> list[torch.Tensor]:
    """All levels that :func:`corr_lookup` reads, in the layout it reads fastest.

    Level 0 is ``fmap2`` itself, level l its 2x2 average pooling l times; an odd last row or column is dropped. Pooling
    runs in float32 and every level is rounded once to ``out_dtype``, by default the dtype of ``fmap2``.

    Equivalent to: ``[fmap2, avg_pool2d(fmap2, 2), avg_pool2d(avg_pool2d(fmap2, 2), 2), ...]``, each made channels_last.

    Shapes:
        fmap2: [B, C, H, W], any strides. Returns ``num_levels`` tensors [B, C, H // 2^l, W // 2^l] in channels_last
        memory. A level may have a side of 1, or of 0 (then lookups there give zeros).
    Raises:
        ValueError, TypeError: wrong rank or dtype; ``num_levels`` below 1 or above 62, more than any size has.
        RuntimeError: the named backend cannot run.
    Source: RAFT (Teed & Deng, ECCV 2020), AlternateCorrBlock: pooling is linear, so pooling fmap2 equals pooling the
        correlation volume.
    """
    _check.floating("corr_pyramid", "fmap2", fmap2, 4, "[B, C, H, W]")
    if not isinstance(num_levels, int) or not 1 <= num_levels <= _MOST_LEVELS:
        raise ValueError(f"corr_pyramid: num_levels must be an integer from 1 to {_MOST_LEVELS}, got {num_levels!r}")
    if out_dtype is not None:
        _check.output_dtype("corr_pyramid", out_dtype, fmap2.device)
    return implementation("corr_pyramid", backend, fmap2.device)(fmap2, num_levels, out_dtype=out_dtype)


def _fake(fmap2: torch.Tensor, num_levels: int, out_dtype: torch.dtype | None = None) -> list[torch.Tensor]:
    batch, channels, height, width = fmap2.shape
    like = fmap2.new_empty(0, dtype=out_dtype)
    return [
        empty_channels_last(like, batch, channels, height // 2**level, width // 2**level) for level in range(num_levels)
    ]


def _setup_context(ctx: Any, inputs: tuple, keyword_only_inputs: dict, output: Any) -> None:
    ctx.shapes = [level.shape for level in output]
    ctx.like = (output[0].dtype, output[0].device)
    ctx.dtype = inputs[0].dtype


def _backward(ctx: Any, grads: Sequence[torch.Tensor | None]) -> tuple:
    dtype, device = ctx.like
    filled = [
        torch.zeros(shape, dtype=dtype, device=device) if grad is None else grad
        for grad, shape in zip(grads, ctx.shapes, strict=True)
    ]
    return torch.ops.daflow_ext.corr_pyramid_backward(filled, out_dtype=ctx.dtype), None


def _backward_fake(grads: Sequence[torch.Tensor], out_dtype: torch.dtype | None = None) -> torch.Tensor:
    return empty_channels_last(grads[0].new_empty(0, dtype=out_dtype), *grads[0].shape)


register("corr_pyramid", _fake, _backward, _setup_context)
register_backward("corr_pyramid", _backward_fake)
