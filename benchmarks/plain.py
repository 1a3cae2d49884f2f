"""The yardsticks in plain PyTorch: RAFT's all-pairs correlation (a volume read by ``grid_sample``), and RAFT."""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from daflow_ext.features.encoder import InstanceNorm
from daflow_ext.models import RAFT


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


class PlainRAFT(nn.Module):
    """RAFT-large with the weights of ``model``, as the paper's equations read in PyTorch: every step on its own.

    NCHW throughout, both frames in one batch, the plain correlation, nothing done in place or kept between steps.

    Args:
        model: whose weights to take (copied).
        every_step: upsample the flow in every step, as RAFT's own code and torchvision's do; else in the last one only.
    Source: RAFT (Teed & Deng, ECCV 2020, arXiv 2003.12039).
    """

    def __init__(self, model: RAFT, every_step: bool = True):
        super().__init__()
        self.every_step = every_step
        self.levels, self.radius, self.hidden = model.corr_levels, model.corr_radius, model.hidden_dim
        parts = copy.deepcopy(nn.ModuleDict({name: getattr(model, name) for name in ("fnet", "cnet", "update_block")}))
        self.fnet, self.cnet, self.update = parts["fnet"], parts["cnet"], parts["update_block"]
        for module in list(self.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, InstanceNorm):
                    setattr(module, name, _PlainInstanceNorm())

    def forward(self, image1: torch.Tensor, image2: torch.Tensor, iters: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
        """Images [B, 3, H, W] in [0, 255] -> flow [B, 2, H/8, W/8] in pixels of the grid, and [B, 2, H, W]."""
        image1, image2 = (2 * (image / 255) - 1 for image in (image1, image2))
        fmap1, fmap2 = self.fnet(torch.cat([image1, image2])).chunk(2)
        corr = PlainCorrBlock(fmap1, fmap2, self.levels, self.radius)
        net, inp = self.cnet(image1).split([self.hidden, self.hidden], dim=1)
        net, inp = torch.tanh(net), torch.relu(inp)
        height, width = net.shape[-2:]
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        grid = torch.stack([x, y]).to(net).expand(len(net), -1, -1, -1)
        coords = grid.clone()
        for step in range(1, iters + 1):
            motion = self._motion(coords - grid, corr(coords))
            net = self._gru(net, torch.cat([inp, motion], dim=1))
            coords = coords + self._delta_flow(net)
            if self.every_step or step == iters:
                flow_up = self._upsample(coords - grid, net)
        return coords - grid, flow_up

    def _motion(self, flow: torch.Tensor, corr: torch.Tensor) -> torch.Tensor:
        encoder = self.update.encoder
        c = torch.relu(encoder.convc2(torch.relu(encoder.convc1(corr))))
        f = torch.relu(encoder.convf2(torch.relu(encoder.convf1(flow))))
        return torch.cat([torch.relu(encoder.conv(torch.cat([c, f], dim=1))), flow], dim=1)

    def _gru(self, h: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        gru = self.update.gru
        for convz, convr, convq in ((gru.convz1, gru.convr1, gru.convq1), (gru.convz2, gru.convr2, gru.convq2)):
            hx = torch.cat([h, x], dim=1)
            z, r = torch.sigmoid(convz(hx)), torch.sigmoid(convr(hx))
            q = torch.tanh(convq(torch.cat([r * h, x], dim=1)))
            h = (1 - z) * h + z * q
        return h

    def _delta_flow(self, net: torch.Tensor) -> torch.Tensor:
        return self.update.flow_head.conv2(torch.relu(self.update.flow_head.conv1(net)))

    def _upsample(self, flow: torch.Tensor, net: torch.Tensor) -> torch.Tensor:
        batch, _, height, width = flow.shape
        weights = self.update.mask(net).view(batch, 1, 9, 8, 8, height, width).softmax(dim=2)
        neighbours = F.unfold(8 * flow, 3, padding=1).view(batch, 2, 9, 1, 1, height, width)
        fine = (weights * neighbours).sum(dim=2)
        return fine.permute(0, 1, 4, 2, 5, 3).reshape(batch, 2, 8 * height, 8 * width)


class _PlainInstanceNorm(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.instance_norm(x)
