"""Rendered clips of moving textured layers with exact flow: training data without a download."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch

from ..frames.degrade import clip_seed
from .base import Clip, FlowSequence, PathLike
from .low_quality import Degraded
from .textures import SPLITS, load_textures, renderer


@dataclasses.dataclass(frozen=True)
class Scene:
    """Everything that is known of a rendered clip of F frames.

    Attributes:
        frames: uint8 [F, H, W, 3] RGB.
        flow, backward: float32 [F-1, H, W, 2] in pixels; pair k from frame k to k+1, and from k+1 to k.
        occluded: bool [F-1, H, W], pixels of frame k whose surface is hidden or out of the image in frame k+1.
        occluded_backward: the same for frame k+1, looked for in frame k.
        layers: uint8 [F, H, W], who is seen: 0 the background, larger numbers nearer.
        reference: float32 [F, H, W, 2], coordinates of the pixel's point on its layer, the same in all frames.
    """

    frames: np.ndarray
    flow: np.ndarray
    backward: np.ndarray
    occluded: np.ndarray
    occluded_backward: np.ndarray
    layers: np.ndarray
    reference: np.ndarray


class Scenes(torch.utils.data.Dataset):
    """``length`` rendered clips; index, seed, split and epoch decide one to the bit, on any machine.

    Args:
        size: height and width.
        frames: frames per clip, at least 2.
        max_displacement, min_displacement: pixels per frame. The largest motion of each layer is drawn log-uniformly
            between them; no pixel moves by more than the first.
        textures: "procedural"; "photos" (photographs inside installed scikit-image and scikit-learn); a folder of
            images; or a sequence of these, each used equally often.
        split: which photographs are used, and other scenes: "training", "validation" or "test".
        layers: how many lie before the background, from .. to.
        elastic: strength of the smooth deformation, 0 .. 1.
        shake, motion_blur, lighting: probability that a clip has a shaking camera, motion blur, changing light.
        degrade: makes low quality on the fly: ``degrade(frames uint8 [F, H, W, 3], seed) -> same``.
    Raises:
        ValueError: an argument out of range; textures that cannot be found.
    """

    name = "scenes"
    pad_mode = "sintel"
    protocol = "dense"

    def __init__(
        self,
        length: int = 10_000,
        *,
        size: tuple[int, int] = (256, 256),
        frames: int = 3,
        max_displacement: float = 100.0,
        min_displacement: float = 0.5,
        textures: PathLike | Sequence[PathLike] = "procedural",
        split: str = "training",
        layers: tuple[int, int] = (2, 8),
        elastic: float = 1.0,
        shake: float = 0.3,
        motion_blur: float = 0.0,
        lighting: float = 0.2,
        degrade: Callable[[np.ndarray, int], np.ndarray] | None = None,
        seed: int = 0,
    ):
        if length < 1:
            raise ValueError(f"length must be at least 1, got {length}")
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        height, width = size
        self.length, self.clip, self.split, self.seed, self.epoch = length, frames, split, seed, 0
        self.textures = (textures,) if isinstance(textures, str | os.PathLike) else tuple(textures)
        self.low_quality = None if degrade is None else Degraded(degrade, None, seed)
        self.settings: dict[str, Any] = {
            "frames": frames,
            "height": height,
            "width": width,
            "min_displacement": min_displacement,
            "max_displacement": max_displacement,
            "layers": layers,
            "elastic": elastic,
            "shake": shake,
            "motion_blur": motion_blur,
            "lighting": lighting,
        }
        self._bank: Any = None
        self._textures().render([], **self.settings)  # checks the settings

    def __len__(self) -> int:
        return self.length

    def item_name(self, index: int) -> str:
        """``<split>/<number>``; the number goes on in later epochs."""
        return f"{self.split}/{self._number(index):08d}"

    def __getitem__(self, index: int) -> Clip:
        """The clip with flow from each frame to the next; ``masks["occluded"]`` is that of the first pair."""
        rendered = self.render([index], everything=False)
        frames, flow = rendered["frames"][0], rendered["flow"][0]
        name = self.item_name(index)
        lq = self.low_quality(FlowSequence(name, frames), 0, frames) if self.low_quality else None
        meta = {
            "dataset": self.name,
            "name": name,
            "sequence": name,
            "index": index,
            "first": 0,
            "pair": 0,
            "pad_mode": self.pad_mode,
        }
        masks = {"occluded": rendered["occluded"][0, 0]}
        return Clip(frames, lq, flow, np.ones(flow.shape[:-1], bool), masks, meta)

    def scene(self, index: int) -> Scene:
        """The same clip with both directions, all occlusion masks and the layers."""
        rendered = self.render([index])
        return Scene(**{name: array[0] for name, array in rendered.items()})

    def render(self, indices: Iterable[int], *, threads: int = 1, everything: bool = True) -> dict[str, np.ndarray]:
        """Many clips at once, on ``threads`` threads: the fields of :class:`Scene` as [B, ...] arrays.

        Without ``everything``: frames, flow, occluded and layers, which takes a quarter less time.
        """
        seeds = [clip_seed(self.seed, f"scenes/{self.split}/{self._number(index)}") for index in indices]
        return self._textures().render(seeds, **self.settings, threads=threads, everything=everything)

    def set_epoch(self, epoch: int) -> None:
        """Other scenes in this epoch (call it before the loader starts its workers)."""
        self.epoch = epoch

    def _number(self, index: int) -> int:
        if not -self.length <= index < self.length:
            raise IndexError(f"scenes has {self.length} clips, item {index} was asked for")
        return self.epoch * self.length + index % self.length

    def _textures(self) -> Any:
        if self._bank is None:
            self._bank = renderer().SceneTextures(*load_textures(self.textures, self.split))
        return self._bank

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_bank": None}  # a process that does not inherit the textures loads them again
