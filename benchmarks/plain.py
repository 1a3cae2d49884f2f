"""The yardstick: RAFT's all-pairs correlation as plain PyTorch (a stored volume read by ``grid_sample``)."""

import torch
import torch.nn.functional as F


class PlainCorrBlock:
    """What RAFT-style repositories run: one matrix product of all pairs, pooled, read by ``grid_sample``.

    Deliberately without any trick of ours: the division makes a second volume, every lookup builds its sampling grid,
    levels with a side of 1 give NaN, and the features must have the dtype of the coordinates.

    Source: RAFT (Teed & Deng, ECCV 2020, arXiv 2003.12039), section 3.2.
    """

    def __init__(self, fmap1: torch.Tensor, fmap2: torch.Tensor, num_levels: int = 4, radius: int = 4):
        batch, channels, height, width = fmap1.shape
        self.num_levels, self.radius = num_levels, radius
        volume = torch.matmul(fmap1.flatten(2).transpose(1, 2), fmap2.flatten(2)) / channels**0.5
        level = volume.reshape(batch * height * width, 1, *fmap2.shape[-2:])
        self.corr_pyramid = [level]
        for _ in range(num_levels - 1):
            level = F.avg_pool2d(level, 2, stride=2)
            self.corr_pyramid.append(level)

    def __call__(self, coords: torch.Tensor) -> torch.Tensor:
        """coords [B, 2, H, W] in pixels -> [B, L * (2r+1)^2, H, W] float32, x offset slow."""
        batch, _, height, width = coords.shape
        window = torch.arange(-self.radius, self.radius + 1, dtype=coords.dtype, device=coords.device)
        offsets = torch.stack(torch.meshgrid(window, window, indexing="ij"), dim=-1)  # [n, n, (dx, dy)]
        centres = coords.permute(0, 2, 3, 1).reshape(-1, 1, 1, 2)
        out = []
        for index, level in enumerate(self.corr_pyramid):
            position = centres / 2**index + offsets  # [B*H*W, n, n, 2]
            x = 2 * position[..., 0] / (level.shape[-1] - 1) - 1
            y = 2 * position[..., 1] / (level.shape[-2] - 1) - 1
            window_values = F.grid_sample(level, torch.stack([x, y], dim=-1), align_corners=True)
            out.append(window_values.reshape(batch, height, width, -1))
        return torch.cat(out, dim=-1).permute(0, 3, 1, 2).contiguous().float()
