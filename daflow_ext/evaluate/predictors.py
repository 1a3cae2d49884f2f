"""Models as functions from a clip to the flow of one pair."""

from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F

from ..frames import InputPadder
from ..models import RAFT
from ..models.raft import SMALLEST_SIDE


class Predictor(Protocol):
    """What the evaluation calls.

    Attributes: ``name``, how tables call it; ``identity``, what changes when its results may change (weights, steps);
    ``clip``, the number of frames it wants to see.
    """

    name: str
    identity: str
    clip: int

    def __call__(
        self, frames: np.ndarray, pair: int, *, backward: bool = False, pad_mode: str = "sintel"
    ) -> torch.Tensor:
        """Flow [2, H, W], float32 on the CPU, from frame ``pair`` of uint8 [T, H, W, 3] to the next (or back)."""


class RaftPredictor:
    """RAFT on two frames.

    ``scale`` runs it on images enlarged 2**scale times (negative: reduced), as SEA-RAFT does with scale -1 on Spring;
    the flow is brought back to the frames' size and units.
    """

    clip = 2

    def __init__(self, name: str, model: RAFT, identity: str, *, iters: int = 20, scale: int = 0):
        self.name, self.model, self.iters, self.scale = name, model.eval(), iters, scale
        self.identity = f"{identity} iters={iters}" + (f" scale={scale}" if scale else "")

    @torch.inference_mode()
    def __call__(
        self, frames: np.ndarray, pair: int, *, backward: bool = False, pad_mode: str = "sintel"
    ) -> torch.Tensor:
        two = torch.from_numpy(np.ascontiguousarray(frames[pair : pair + 2])).permute(0, 3, 1, 2)
        two = (two.flip(0) if backward else two).to(next(self.model.parameters()).device)
        height, width = two.shape[-2:]
        if self.scale:
            two = F.interpolate(two.float(), scale_factor=2.0**self.scale, mode="bilinear", align_corners=False)
        padder = InputPadder(two.shape, pad_mode, minimum=SMALLEST_SIDE)
        image1, image2 = padder.pad(two[:1], two[1:])
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            flow = padder.unpad(self.model(image1, image2, iters=self.iters, test_mode=True)[1])
        if self.scale:
            ratio = flow.new_tensor([width / flow.shape[-1], height / flow.shape[-2]])[:, None, None]
            flow = F.interpolate(flow, size=(height, width), mode="bilinear", align_corners=False) * ratio
        return flow[0].float().cpu().contiguous()


class ZeroPredictor:
    """No motion anywhere: the floor of every accuracy table, and the perfect score of every robustness table."""

    name, identity, clip = "zero", "zero", 2

    def __call__(
        self, frames: np.ndarray, pair: int, *, backward: bool = False, pad_mode: str = "sintel"
    ) -> torch.Tensor:
        return torch.zeros(2, *frames.shape[1:3])
