"""Large latents in overlapping tiles, blended with a Gaussian window."""

from collections.abc import Callable
from typing import Any

import torch


class Tiles:
    """Positions of square tiles that cover a latent image, and the blending of what is computed on them.

    Args:
        size: (height, width) of the latents. tile: side of a tile in latent pixels, None for one tile.
        overlap: latent pixels shared by neighbours. patch: latent pixels per token; positions are multiples of it.
    Raises:
        ValueError: a tile or overlap that does not fit.
    """

    def __init__(self, size: tuple[int, int], tile: int | None, overlap: int, patch: int):
        self.size, self.patch = (size[0], size[1]), patch
        if tile is None:
            self.starts, self.sides = ([0], [0]), self.size
            return
        if tile % patch or overlap % patch or not 0 <= overlap < tile:
            raise ValueError(
                f"tile {tile} and overlap {overlap} must be multiples of {patch}, the overlap smaller than the tile"
            )
        height, width = self.size
        self.sides = min(tile, height), min(tile, width)
        self.starts = _starts(height, tile, overlap), _starts(width, tile, overlap)

    def __len__(self) -> int:
        return len(self.starts[0]) * len(self.starts[1])

    def blend(self, run: Callable) -> tuple[Any, dict]:
        """run((rows, columns)) -> (velocity or None, taps) on each tile, blended to the whole image.

        Velocities are images [B, F, C, h, w]; taps are token lists [B, F, T, C] per kind and layer.
        """
        image_blend = _Blend(self.size)
        token_blend: dict[str, dict[int, _Blend]] = {}
        cells = self.size[0] // self.patch, self.size[1] // self.patch
        for top in self.starts[0]:
            for left in self.starts[1]:
                window = slice(top, top + self.sides[0]), slice(left, left + self.sides[1])
                rows, columns = (slice(s.start // self.patch, s.stop // self.patch) for s in window)
                grid = rows.stop - rows.start, columns.stop - columns.start
                velocity, taps = run(window)
                if velocity is not None:
                    image_blend.add(velocity, window)
                for kind, layers in taps.items():
                    blends = token_blend.setdefault(kind, {})
                    for layer, tokens in layers.items():
                        image = tokens.unflatten(2, grid).movedim(-1, 2)  # [B, F, C, h, w]
                        blends.setdefault(layer, _Blend(cells)).add(image, (rows, columns))
        taps = {
            kind: {layer: blend.mean().movedim(2, -1).flatten(2, 3) for layer, blend in blends.items()}
            for kind, blends in token_blend.items()
        }
        return None if image_blend.total is None else image_blend.mean(), taps


class _Blend:
    """A weighted sum of overlapping pieces, in float32: the window's corners underflow in half precision."""

    def __init__(self, size: tuple[int, int]):
        self.size, self.dtype = size, torch.float32
        self.total: torch.Tensor | None = None
        self.weight = torch.zeros(size)

    def add(self, piece: torch.Tensor, window: tuple[slice, slice]) -> None:
        if self.total is None:
            self.dtype = piece.dtype
            self.total = piece.new_zeros((*piece.shape[:-2], *self.size), dtype=torch.float32)
            self.weight = self.weight.to(piece.device)
        gaussian = _gaussian((piece.shape[-2], piece.shape[-1])).to(piece.device)
        self.total[..., window[0], window[1]] += piece.float() * gaussian
        self.weight[window] += gaussian

    def mean(self) -> torch.Tensor:
        assert self.total is not None, "nothing was added"
        return (self.total / self.weight).to(self.dtype)


def _starts(side: int, tile: int, overlap: int) -> list[int]:
    """Tile positions along one side; the last one is moved inward."""
    if side <= tile:
        return [0]
    return [*range(0, side - tile, tile - overlap), side - tile]


def _gaussian(sides: tuple[int, int]) -> torch.Tensor:
    """Window over a tile, largest in the middle; standard deviation a tenth of the tile, as DiT4SR blends."""
    axes = []
    for side in sides:
        offset = (torch.arange(side, dtype=torch.float32) - (side - 1) / 2) / side
        axes.append(torch.exp(-(offset**2) / (2 * 0.01)))
    return axes[0][:, None] * axes[1]
