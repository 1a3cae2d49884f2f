"""One chunk of three frames: transformer features once, then the flow of each of its pairs in the wanted directions."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.utils.torch_utils import randn_tensor

from ..features.dense_head import TOKEN_STRIDE
from ..features.restoration import LATENT_FACTOR, LiftedRestoration
from ..features.tiling import Tiles
from ..flow import forward_interpolate
from .daflow import DAFlow
from .raft import STRIDE

CHUNK = 3
"""Frames that the transformer sees at once; neighbouring chunks share one, so every pair is in exactly one chunk."""

MULTIPLE = TOKEN_STRIDE
"""Sides of padded frames are multiples of this: one transformer token."""


@dataclass(frozen=True)
class TileSizes:
    """Sides of tiles in image pixels, multiples of 16; None = the whole frame at once."""

    transformer: int | None = None
    flow: int | None = None


def tile_overlap(tile: int) -> int:
    """Image pixels that neighbouring tiles share: a quarter of the side."""
    return tile // 4 // MULTIPLE * MULTIPLE


@dataclass
class ChunkFlow:
    """What a chunk gives.

    Shapes:
        forward: [B, n, 2, H, W], mean over the feature steps, n pairs (1 or 2). backward: the same from the later frame
        to the earlier, or None. steps: [S, B, n, 2, H, W], forward flow of each feature step, or None. latents: after
        the last denoising step [B, 3, C, H/8, W/8], or None.
    Units: pixels of the padded frames.
    """

    forward: torch.Tensor
    backward: torch.Tensor | None
    steps: torch.Tensor | None
    latents: torch.Tensor | None


def chosen_steps(feature_steps: str | Sequence[int], num_inference_steps: int) -> tuple[int, ...]:
    """Which denoising steps give features: "first", "all", or their indices.

    Raises:
        ValueError: something else, or indices outside the steps.
    """
    if not isinstance(num_inference_steps, int) or num_inference_steps < 1:
        raise ValueError(f"num_inference_steps must be an integer >= 1, got {num_inference_steps!r}")
    named = {"first": (0,), "all": tuple(range(num_inference_steps))}
    if isinstance(feature_steps, str) and feature_steps in named:
        return named[feature_steps]
    if isinstance(feature_steps, str) or not isinstance(feature_steps, Iterable):
        raise ValueError(f"feature_steps must be 'first', 'all' or a list of step indices, got {feature_steps!r}")
    steps = tuple(sorted(set(feature_steps)))
    if not steps or not all(isinstance(step, int) and 0 <= step < num_inference_steps for step in steps):
        raise ValueError(
            f"feature_steps must be indices in 0..{num_inference_steps - 1} (num_inference_steps={num_inference_steps})"
            f", got {list(feature_steps)}"
        )
    return steps


def on_grid(flow: torch.Tensor) -> torch.Tensor:
    """Flow [B, 2, H, W] in pixels as a start for the network: means over 8x8 pixels, in pixels of the 1/8 grid."""
    return F.avg_pool2d(flow, STRIDE) / STRIDE


def carried(flow: torch.Tensor, *, backward: bool = False) -> torch.Tensor:
    """Warm start of the next pair, [B, 2, H/8, W/8], from this pair's flow [B, 2, H, W].

    The motion goes on, so backward vectors travel against their own direction.
    """
    grid = on_grid(flow)
    return -forward_interpolate(-grid) if backward else forward_interpolate(grid)


class ChunkEstimator:
    """Flow of chunk after chunk with one set of settings and one starting noise.

    The noise [1, 3, C, H/8, W/8] is drawn here, once, for all chunks and batch items: a pair's flow depends on the
    frames of its chunk alone, not on what else is in the clip.

    Args:
        size: height and width of the padded frames, multiples of 16.
        feature_steps: step indices; several are averaged after the flow network, as the paper's table does.
        warm_start: inside a chunk, begin the second pair at the flow of the first (of the same step), carried along.
        keep_steps: also give the flow of every step. denoise: go on to the last step and give its latents.
    """

    def __init__(
        self,
        restoration: LiftedRestoration,
        flow: DAFlow,
        size: tuple[int, int],
        *,
        num_inference_steps: int,
        feature_steps: tuple[int, ...],
        iters: int,
        generator: torch.Generator | None = None,
        bidirectional: bool = False,
        warm_start: bool = False,
        keep_steps: bool = False,
        denoise: bool = False,
        tiles: TileSizes = TileSizes(),
    ):
        self.flow, self.size, self.iters = flow, (size[0], size[1]), iters
        self.num_inference_steps, self.feature_steps = num_inference_steps, feature_steps
        self.bidirectional, self.warm_start = bidirectional, warm_start
        self.keep_steps, self.denoise = keep_steps, denoise
        restoration.tile, restoration.tile_overlap = None, 0
        if tiles.transformer is not None:
            restoration.tile = tiles.transformer // LATENT_FACTOR
            restoration.tile_overlap = tile_overlap(tiles.transformer) // LATENT_FACTOR
        self.restoration = restoration
        overlap = 0 if tiles.flow is None else tile_overlap(tiles.flow)
        self.flow_tiles = Tiles(self.size, tiles.flow, overlap, MULTIPLE)
        transformer = restoration.transformer
        shape = (1, CHUNK, transformer.config.in_channels, *(side // LATENT_FACTOR for side in self.size))
        noise = randn_tensor(shape, generator=generator, device=transformer.device, dtype=torch.float32)
        self.noise = noise.to(transformer.dtype)
        self.share_text = restoration.can_share_text

    @torch.no_grad()
    def encode(self, frame: torch.Tensor) -> torch.Tensor:
        """Latents [B, 1, C, H/8, W/8] of a padded frame [B, 3, H, W]; frame by frame, so that the number of frames
        changes no bit."""
        loop = self.restoration
        latent_size = self.size[0] // LATENT_FACTOR, self.size[1] // LATENT_FACTOR
        tiles = Tiles(latent_size, loop.tile, loop.tile_overlap, loop.transformer.config.patch_size)

        def run(window: tuple[slice, slice]) -> tuple[torch.Tensor, dict]:
            rows, columns = (slice(LATENT_FACTOR * s.start, LATENT_FACTOR * s.stop) for s in window)
            return loop.encode(frame[:, None, :, rows, columns]), {}

        return loop.encode(frame[:, None]) if len(tiles) == 1 else tiles.blend(run)[0]

    @torch.no_grad()
    def __call__(
        self,
        frames: torch.Tensor,
        latents: torch.Tensor,
        pairs: int,
        flow_init: Sequence[torch.Tensor | None] = (None, None),
        backward_init: Sequence[torch.Tensor | None] = (None, None),
    ) -> ChunkFlow:
        """Flow of the first ``pairs`` pairs.

        Shapes:
            frames: [B, 3, 3, H, W], padded, uint8 or float in [0, 255]. latents: [B, 3, C, H/8, W/8].
            flow_init, backward_init: per pair [B, 2, H/8, W/8] in pixels of that grid, or None for zero.
        """
        tokens = self.flow.config.features == "tokens"
        only_first = self.feature_steps == (0,) and not self.denoise
        steps = self.restoration.steps_from_latents(
            latents,
            num_inference_steps=self.num_inference_steps,
            tap_layers=tuple(self.flow.config.tap_layers),
            tap_tokens=tokens,
            first_step_only=only_first,
            noise=self.noise.expand(latents.shape[0], -1, -1, -1, -1),
            share_text=self.share_text,
        )
        forward: Any = None  # a tensor from the first feature step on
        backward = final = None
        kept = []
        for step in steps:
            final = step.latents
            if step.index in self.feature_steps:
                sides = (step.tokens, step.tokens) if tokens else (step.queries, step.keys)
                flow = self._pairs(frames, sides, pairs, flow_init)
                forward = flow if forward is None else forward + flow
                if self.keep_steps:
                    kept.append(flow)
                if self.bidirectional:
                    flow = self._pairs(frames, sides, pairs, backward_init, backward=True)
                    backward = flow if backward is None else backward + flow
            if step.index == self.feature_steps[-1] and not self.denoise:
                break
        count = len(self.feature_steps)
        return ChunkFlow(
            forward=forward / count,
            backward=None if backward is None else backward / count,
            steps=torch.stack(kept) if kept else None,
            latents=final if self.denoise else None,
        )

    def _pairs(
        self,
        frames: torch.Tensor,
        sides: tuple[dict[int, torch.Tensor], dict[int, torch.Tensor]],
        pairs: int,
        init: Sequence[torch.Tensor | None],
        *,
        backward: bool = False,
    ) -> torch.Tensor:
        """[B, pairs, 2, H, W] of one denoising step. The frame that asks gives queries, the one that answers keys."""
        queries, keys = sides
        flows: list[torch.Tensor] = []
        for pair in range(pairs):
            one, other = (pair + 1, pair) if backward else (pair, pair + 1)
            start = init[pair]
            if self.warm_start and flows:
                start = carried(flows[-1], backward=backward)
            flows.append(
                self._flow(
                    frames[:, one],
                    frames[:, other],
                    {layer: tap[:, one] for layer, tap in queries.items()},
                    {layer: tap[:, other] for layer, tap in keys.items()},
                    start,
                )
            )
        return torch.stack(flows, 1)

    def _flow(
        self,
        image1: torch.Tensor,
        image2: torch.Tensor,
        queries: dict[int, torch.Tensor],
        keys: dict[int, torch.Tensor],
        start: torch.Tensor | None,
    ) -> torch.Tensor:
        """[B, 2, H, W] float32; tile by tile where the frames are larger."""
        grid = self.size[0] // MULTIPLE, self.size[1] // MULTIPLE

        def run(window: tuple[slice, slice]) -> tuple[torch.Tensor, dict]:
            cells, low = ([slice(s.start // n, s.stop // n) for s in window] for n in (MULTIPLE, STRIDE))
            asking, answering = (
                {layer: tap.unflatten(1, grid)[:, cells[0], cells[1]].flatten(1, 2) for layer, tap in side.items()}
                for side in (queries, keys)
            )
            rows, columns = window
            begin = None if start is None else start[..., low[0], low[1]]
            flow = self._network(image1[..., rows, columns], image2[..., rows, columns], asking, answering, begin)
            return flow, {}

        if len(self.flow_tiles) == 1:
            return self._network(image1, image2, queries, keys, start)
        return self.flow_tiles.blend(run)[0]

    def _network(
        self,
        image1: torch.Tensor,
        image2: torch.Tensor,
        queries: dict[int, torch.Tensor],
        keys: dict[int, torch.Tensor],
        start: torch.Tensor | None,
    ) -> torch.Tensor:
        # the frames were checked as wholes; a tile of one may be dark
        options = {"iters": self.iters, "flow_init": start, "test_mode": True, "check_range": False}
        return self.flow(image1, image2, queries, keys, **options)[1].float()
