"""Stands in for ptlflow's RAFT: images [B, 2, 3, H, W] in, flows [B, 1, 2, H, W] out, a tiny network between."""

import torch
import torch.nn.functional as F

from .corr import get_corr_block


class RAFTSmall(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fnet = torch.nn.Conv2d(3, 32, 8, stride=8)
        self.head = torch.nn.Conv2d(4 * 7 * 7, 2, 3, padding=1)

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        fmap1, fmap2 = (self.fnet(image - 0.5) for image in inputs["images"].unbind(1))
        corr_fn = get_corr_block(fmap1=fmap1, fmap2=fmap2, radius=3)
        y, x = torch.meshgrid(*(torch.arange(float(side)) for side in fmap1.shape[-2:]), indexing="ij")
        coords0 = torch.stack((x, y))[None].expand(len(fmap1), -1, -1, -1)
        coords1 = coords0
        for _ in range(6):
            coords1 = coords1 + self.head(corr_fn(coords1))
        flow = 8 * F.interpolate(coords1 - coords0, scale_factor=8, mode="bilinear", align_corners=True)
        return {"flows": flow[:, None], "flow_small": coords1 - coords0}
