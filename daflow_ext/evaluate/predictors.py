"""Models as functions from a clip to the flow of one pair."""

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F

from ..features.dense_head import TOKEN_STRIDE
from ..frames import InputPadder
from ..models import RAFT
from ..models.raft import SMALLEST_SIDE

if TYPE_CHECKING:
    from ..models.pipeline import DAFlowPipeline


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
        two = _images(frames[pair : pair + 2], next(self.model.parameters()).device, self.scale)
        two = two.flip(0) if backward else two
        padder = InputPadder(two.shape, pad_mode, minimum=SMALLEST_SIDE)
        image1, image2 = padder.pad(two[:1], two[1:])
        with _deterministic():
            flow = padder.unpad(self.model(image1, image2, iters=self.iters, test_mode=True)[1])
        return _at_size(flow, frames.shape[1:3])


class DAFlowPredictor:
    """A DA-Flow pipeline on three frames, the pair and the frame after it (at the end of a clip: before it).

    The starting noise is that of ``seed`` for every item; ``scale`` as in :class:`RaftPredictor`, further options as in
    a call of the pipeline.
    """

    clip = 3

    def __init__(
        self,
        name: str,
        pipe: "DAFlowPipeline",
        identity: str,
        *,
        iters: int = 20,
        num_inference_steps: int = 10,
        feature_steps: str | Sequence[int] = "first",
        seed: int = 0,
        memory_budget: int | None = None,
        scale: int = 0,
    ):
        self.name, self.pipe, self.seed, self.scale = name, pipe, seed, scale
        self.options: dict[str, Any] = {
            "iters": iters,
            "num_inference_steps": num_inference_steps,
            "feature_steps": feature_steps,
            "memory_budget": memory_budget,
        }
        settings = self.options | {"seed": seed, "scale": scale}
        self.identity = " ".join([identity, *(f"{key}={value}" for key, value in settings.items())])

    def __call__(
        self, frames: np.ndarray, pair: int, *, backward: bool = False, pad_mode: str = "sintel"
    ) -> torch.Tensor:
        first = max(0, min(pair, len(frames) - self.clip))
        chunk = _images(frames[first : first + self.clip], self.pipe.device, self.scale)
        padder = InputPadder(chunk.shape, pad_mode, multiple=TOKEN_STRIDE, minimum=SMALLEST_SIDE)
        (chunk,) = padder.pad(chunk)
        generator = torch.Generator().manual_seed(self.seed)
        with _deterministic():
            output: Any = self.pipe(chunk, generator=generator, bidirectional=backward, **self.options)
        flows = output.backward_flows if backward else output.flows
        return _at_size(padder.unpad(flows[:, pair - first]), frames.shape[1:3])


def _images(frames: np.ndarray, device: torch.device, scale: int) -> torch.Tensor:
    """uint8 [T, H, W, 3] to [T, 3, H', W'], resized 2**scale times."""
    images = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).to(device)
    if not scale:
        return images
    return F.interpolate(images.float(), scale_factor=2.0**scale, mode="bilinear", align_corners=False)


def _at_size(flow: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """[1, 2, H', W'] to [2, H, W] on the CPU, in pixels of that size."""
    if tuple(flow.shape[-2:]) != tuple(size):
        ratio = flow.new_tensor([size[1] / flow.shape[-1], size[0] / flow.shape[-2]])[:, None, None]
        flow = F.interpolate(flow, size=tuple(size), mode="bilinear", align_corners=False) * ratio
    return flow[0].float().cpu().contiguous()


def _deterministic() -> contextlib.AbstractContextManager:
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)


class ZeroPredictor:
    """No motion anywhere: the floor of every accuracy table, and the perfect score of every robustness table."""

    name, identity, clip = "zero", "zero", 2

    def __call__(
        self, frames: np.ndarray, pair: int, *, backward: bool = False, pad_mode: str = "sintel"
    ) -> torch.Tensor:
        return torch.zeros(2, *frames.shape[1:3])
