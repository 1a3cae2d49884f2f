"""Which tiles keep a chunk of frames under a memory budget.

The need of each stage is a number of bytes per pixel of its tile, times what its configuration says of its width. The
factors are measured: growth of the resident memory over one call, on tiles of 256 to 512 pixels, rounded up
(`python -m benchmarks.daflow --memory`; AMD EPYC, torch 2.13 on the CPU, 2026-11-20):

    stage        daflow-tiny, float32          daflow, bfloat16 (flow network: float32)
    VAE          12 B/px per frame             1742 B/px per frame
    transformer  373 B/px for three frames     2102 B/px for three frames
    flow         396 B/px per pair             742 B/px per pair

What no tile saves is kept for the whole frame: frames, latents, tapped features and flows.
"""

from dataclasses import dataclass
from typing import Any

import torch

from ..correlation.memory import CPU_LIMIT
from .chunks import CHUNK, MULTIPLE, TileSizes

SMALLEST_TILE = 128
"""Pixels; smaller tiles see too little of a motion."""

VAE_MAPS = 7  # images of the VAE's first width alive at once
TRANSFORMER_MAPS = 30  # token maps alive at once, per frame and image stream
RAFT_BYTES = {True: 360, False: 800}  # of encoders and update, by `small`
HEAD_BYTES = 0.5  # per channel of the dense heads
FLOW_BYTES = 100  # flows of a chunk in both directions and what compares them
_F32 = 4
_TOKEN = MULTIPLE**2  # pixels
_LATENT = 64  # pixels


@dataclass(frozen=True)
class Needs:
    """Bytes per pixel and batch item: of the whole frame (with more once features are blended), and of a tile."""

    frame: float
    blend: float
    transformer: float
    flow: float

    @classmethod
    def of(cls, pipe: Any, iters: int) -> "Needs":
        """From the configurations of a pipeline's parts."""
        transformer, flow, vae = pipe.transformer.config, pipe.flow.config, pipe.vae
        element = torch.empty(0, dtype=pipe.transformer.dtype).element_size()
        tokens = CHUNK * transformer.num_attention_heads * transformer.attention_head_dim / _TOKEN
        latents = CHUNK * transformer.in_channels * element / _LATENT
        kinds = 3 if flow.features == "tokens" else 2
        taps = kinds * len(flow.tap_layers) * tokens
        widths: Any = getattr(vae.config, "block_out_channels", None)
        widths = widths or getattr(vae.config, "encoder_block_out_channels", (3,))
        encode = widths[0] * torch.empty(0, dtype=vae.dtype).element_size() * VAE_MAPS
        radius = pipe.flow.raft.corr_radius
        volume = CPU_LIMIT * iters * flow.corr_levels * (2 * radius + 2) ** 2 * _F32 / _LATENT  # memory="auto"
        blocks = 2 if flow.correlation == "sum" else 1
        return cls(
            frame=6 * CHUNK * _F32 + 3 * latents + taps * element + FLOW_BYTES,
            blend=taps * _F32 + tokens * _F32,
            transformer=max(2 * tokens * element * TRANSFORMER_MAPS + 3 * latents, encode),
            flow=RAFT_BYTES[flow.small] + HEAD_BYTES * flow.head_channels + taps * _F32 / CHUNK + blocks * volume,
        )


def choose_tiles(pipe: Any, size: tuple[int, int], budget: int | None, *, iters: int, batch: int = 1) -> TileSizes:
    """The largest tiles for frames of ``size`` = (height, width), multiples of 16, under ``budget`` bytes.

    Without a budget the frame stays whole, unless it has more tokens a side than the transformer has positions for.

    Raises:
        ValueError: no number of bytes; a budget under which not even the smallest tiles fit; says how much is needed.
    """
    if budget is not None and (not isinstance(budget, int) or budget < 1):
        raise ValueError(f"memory_budget must be a positive whole number of bytes, got {budget!r}")
    positions = pipe.transformer.config.pos_embed_max_size * MULTIPLE
    if budget is None:
        return TileSizes(transformer=positions if max(size) > positions else None)
    needs, pixels = Needs.of(pipe, iters), batch * size[0] * size[1]

    def side(per_pixel: float, whole: float, tiled: float, largest: int) -> int | None:
        """A tile's side, None for the whole frame; ``whole`` and ``tiled``: bytes per pixel of the frame beside it."""
        if pixels * (per_pixel + whole) <= budget and max(size) <= largest:
            return None
        for tile in range(min(max(size), largest), SMALLEST_TILE - 1, -MULTIPLE):
            area = batch * min(tile, size[0]) * min(tile, size[1])
            if area * per_pixel + pixels * tiled <= budget:
                return tile
        least = batch * min(SMALLEST_TILE, size[0]) * min(SMALLEST_TILE, size[1]) * per_pixel + pixels * tiled
        raise ValueError(
            f"memory_budget={budget} is too small for frames of {size[1]}x{size[0]}: {int(least) + 1} bytes is the "
            f"least, with tiles of {SMALLEST_TILE} pixels"
        )

    transformer = side(needs.transformer, needs.frame, needs.frame + needs.blend, positions)
    return TileSizes(transformer, side(needs.flow, needs.frame, needs.frame, max(size)))
