"""Restores a video in constant memory, guided by flow or not."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor

from ..features.color_fix import COLOR_FIXES, fix_colors
from ..features.restoration import LATENT_FACTOR, LiftedRestoration
from .chunks import CHUNK
from .guidance import FlowGuidance, GuidanceSettings
from .pair_flow import PairFlow
from .video import check_frame


@dataclass
class RestoredChunk:
    """The frames that one chunk adds.

    Shapes:
        frames: float32 [n, 3, H, W] in [0, 255], on the CPU: three of the first chunk, then two, or one.
        anchor: [3, H, W], the last of them before its colours were corrected; with guidance the next chunk is pulled
        towards it.
    Attributes:
        index: the number of the chunk. first: that of its first new frame in the clip. seconds: time it took.
    """

    index: int
    first: int
    frames: torch.Tensor
    anchor: torch.Tensor
    seconds: float


def restore_video(
    frames: Iterable[torch.Tensor],
    restoration: LiftedRestoration,
    *,
    pairs: Iterable[PairFlow] | None = None,
    guidance: GuidanceSettings | None = None,
    num_inference_steps: int = 10,
    generator: torch.Generator | None = None,
    color_fix: str = "adain",
    start: int = 0,
    anchor: torch.Tensor | None = None,
    backend: str = "auto",
) -> Iterator[RestoredChunk]:
    """Restore chunk after chunk of three frames that share one, which keeps what its first chunk made of it.

    The starting noise is drawn once for all chunks. Without guidance, or at scale 0, the frames are those of
    ``DAFlowPipeline(..., output_restored=True)`` with the same generator.

    Args:
        frames: uint8 or float [3, H, W] in [0, 255], at the size wanted.
        pairs: guides along this flow: one after the other from the pair that starts chunk ``start`` on, in both
            directions (``pipe.video(frames, bidirectional=True)``, an estimator, flow files). None: no guidance.
        guidance: how strongly; None: :class:`GuidanceSettings` as they are.
        color_fix: see :meth:`LiftedRestoration.restore`.
        start: first chunk to restore; the frames before it are read and dropped. anchor: of the chunk before it.
        backend: of warping; "reference" for plain PyTorch.
    Raises:
        ValueError, TypeError: fewer than two frames, frames or flows that do not fit.
    """
    if color_fix not in COLOR_FIXES:
        raise ValueError(f"color_fix must be one of {', '.join(COLOR_FIXES)}, got {color_fix!r}")
    if start < 0:
        raise ValueError(f"start must be >= 0, got {start}")
    walk = _Walk(
        restoration, guidance or GuidanceSettings(), num_inference_steps, generator, color_fix, anchor, backend
    )
    flows = None if pairs is None else iter(pairs)
    window: list[torch.Tensor] = []
    chunk, count, first = start, 0, None
    for frame in frames:
        check_frame(frame, count, first)
        first = frame if first is None else first
        count += 1
        if count <= start * (CHUNK - 1):
            continue
        window.append(frame)
        if len(window) == CHUNK:
            yield walk.chunk(chunk, window, flows)
            chunk, window = chunk + 1, window[-1:]
    if len(window) == 2:
        yield walk.chunk(chunk, window, flows)
    elif count < 2:
        source = getattr(frames, "source", "the video")
        raise ValueError(f"{source} holds {count} frame(s), restoring it needs at least two")


class _Walk:
    """What is carried from chunk to chunk: the noise, the shared frame's latents and its restored image."""

    def __init__(
        self,
        restoration: LiftedRestoration,
        guidance: Any,
        num_inference_steps: int,
        generator: Any,
        color_fix: str,
        anchor: Any,
        backend: str,
    ):
        self.restoration, self.guidance, self.backend = restoration, guidance, backend
        self.num_inference_steps, self.generator, self.color_fix = num_inference_steps, generator, color_fix
        self.noise, self.anchor = None, anchor
        self.latents: list[torch.Tensor] = []

    @torch.no_grad()
    def chunk(self, index: int, window: list[torch.Tensor], flows: Iterator[PairFlow] | None) -> RestoredChunk:
        began = time.perf_counter()
        loop, clip = self.restoration, torch.stack(window)[None]
        padder = loop.padder(clip)
        self._check_size(*clip.shape[-2:])
        padded = padder.pad(clip.to(loop.transformer.device))[0]
        latents = [*self.latents, *(loop.encode(padded[:, k, None]) for k in range(len(self.latents), len(window)))]
        latents += latents[-1:] * (CHUNK - len(latents))  # the last frame stands for a missing third
        self.latents = latents[-1:]
        lq = torch.cat(latents, 1)
        if self.noise is None:
            shape = (1, CHUNK, *lq.shape[2:])
            noise = randn_tensor(shape, generator=self.generator, device=lq.device, dtype=torch.float32)
            self.noise = noise.to(lq.dtype)
        guide = None if flows is None else self._guide(flows, index, len(window) - 1)
        for step in loop.steps_from_latents(
            lq,
            num_inference_steps=self.num_inference_steps,
            noise=self.noise,
            share_text=loop.can_share_text,
            guide=guide,
        ):
            final: Any = step.latents
        shown = slice(0 if index == 0 else 1, len(window))
        decoded = padder.unpad(loop.decode(final[:, shown]))
        self.anchor = decoded[0, -1].cpu()
        frames = fix_colors(decoded, clip[:, shown].to(decoded), self.color_fix)[0].cpu()
        first = index * (CHUNK - 1) + shown.start
        return RestoredChunk(index, first, frames, self.anchor, time.perf_counter() - began)

    def _check_size(self, height: int, width: int) -> None:
        config = self.restoration.transformer.config
        largest = LATENT_FACTOR * config.patch_size * config.pos_embed_max_size
        if self.restoration.tile is None and max(height, width) > largest:
            raise ValueError(
                f"frames of {width}x{height} pixels exceed the {largest} per side that this transformer knows; "
                "restore them in tiles (LiftedRestoration(tile=...), --tile 512)"
            )

    def _guide(self, flows: Iterator[PairFlow], index: int, count: int) -> FlowGuidance:
        """Guidance along the next ``count`` pairs."""
        device = self.restoration.transformer.device
        directions: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
        for number in range(index * (CHUNK - 1), index * (CHUNK - 1) + count):
            pair = next(flows, None)
            if pair is None or pair.index != number or pair.backward is None:
                came = "no more" if pair is None else f"that of pair {pair.index}"
                came = "one direction" if pair is not None and pair.index == number else came
                raise ValueError(f"guidance needs the flow of pair {number} in both directions, {came} came")
            directions[0].append(pair.forward)
            directions[1].append(pair.backward)
        forward, backward = (torch.stack(flow)[None].to(device) for flow in directions)
        anchor = None if index == 0 or self.anchor is None else self.anchor[None].to(device)
        return FlowGuidance(self.restoration, forward, backward, self.guidance, anchor=anchor, backend=self.backend)
