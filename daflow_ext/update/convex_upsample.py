"""Flow from the coarse grid to image pixels: learned convex combinations (large model) or bilinear (small model)."""

import torch
import torch.nn.functional as F


def convex_upsample(flow: torch.Tensor, mask: torch.Tensor, factor: int = 8) -> torch.Tensor:
    """Every fine pixel is a convex combination of the 3x3 coarse neighbours (zeros outside), times ``factor``.

    Equivalent to: ``up[2, f y + i, f x + j] = sum_k softmax_k(mask[k, i, j, y, x]) * f * flow[2, y + k // 3 - 1,
    x + k % 3 - 1]`` with f = ``factor`` and the 9 f^2 channels of mask read as [9, f, f].

    Shapes:
        flow [B, D, H, W] (D = 2), mask [B, 9 * factor^2, H, W]. Returns [B, D, factor * H, factor * W].
    Units:
        flow in pixels of the H x W grid, the result in pixels of the fine grid.
    Raises:
        ValueError: mask does not fit flow and factor.
    Source: RAFT (Teed & Deng, ECCV 2020, arXiv 2003.12039), section 3.3 and appendix.
    """
    batch, planes, height, width = flow.shape
    if mask.shape != (batch, 9 * factor**2, height, width):
        raise ValueError(
            f"convex_upsample: mask must be {[batch, 9 * factor**2, height, width]} for flow {list(flow.shape)} "
            f"and factor {factor}, got {list(mask.shape)}"
        )
    neighbours = F.unfold(factor * flow, 3, padding=1).view(batch, planes, 9, height, width)
    if mask.is_contiguous(memory_format=torch.channels_last):  # as the convolutions on the CPU give it
        logits = mask.permute(0, 2, 3, 1).view(batch, height, width, 1, 9, factor**2)
        fine = _convex(logits, neighbours.permute(0, 3, 4, 1, 2)[..., None], dim=4)  # [B, y, x, D, (i, j)]
        fine = fine.unflatten(-1, (factor, factor)).permute(0, 3, 1, 4, 2, 5)
    else:
        logits = mask.view(batch, 1, 9, factor, factor, height, width)
        fine = _convex(logits, neighbours[:, :, :, None, None], dim=2)  # [B, D, i, j, y, x]
        fine = fine.permute(0, 1, 4, 2, 5, 3)
    return fine.reshape(batch, planes, factor * height, factor * width)


def _convex(logits: torch.Tensor, values: torch.Tensor, dim: int) -> torch.Tensor:
    """Values weighted by the softmax along ``dim``; added one by one, as all products at once are many times larger."""
    weights, values_of = logits.softmax(dim).unbind(dim), values.unbind(dim)
    total = weights[0] * values_of[0]
    for weight, value in zip(weights[1:], values_of[1:], strict=True):
        total = total.addcmul_(weight, value)
    return total


def bilinear_upsample(flow: torch.Tensor, factor: int = 8) -> torch.Tensor:
    """Bilinear with aligned corners, times ``factor``. Shapes and units as :func:`convex_upsample`."""
    size = (factor * flow.shape[-2], factor * flow.shape[-1])
    return factor * F.interpolate(flow, size=size, mode="bilinear", align_corners=True)
