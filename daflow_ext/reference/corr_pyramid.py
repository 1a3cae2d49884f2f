"""Reference of ``corr_pyramid``: average-pooled, channels-last levels of a feature map."""

import torch
import torch.nn.functional as F


def corr_pyramid(
    fmap2: torch.Tensor, num_levels: int = 4, *, out_dtype: torch.dtype | None = None
) -> list[torch.Tensor]:
    """Level l is fmap2 average-pooled 2x2 l times; see :func:`daflow_ext.ops.corr_pyramid`."""
    out_dtype = fmap2.dtype if out_dtype is None else out_dtype
    accumulate = torch.float64 if torch.float64 in (fmap2.dtype, out_dtype) else torch.float32
    level = fmap2.to(accumulate)  # pooled without intermediate rounding: each level is rounded once
    levels = []
    for index in range(num_levels):
        if index > 0:
            height, width = level.shape[-2] // 2, level.shape[-1] // 2
            if height == 0 or width == 0 or level.numel() == 0:
                level = level[:, :, :height, :width]  # a level without pixels, where avg_pool2d would raise
            else:
                level = F.avg_pool2d(level, 2, stride=2)
        levels.append(level.to(out_dtype).contiguous(memory_format=torch.channels_last))
    return levels
