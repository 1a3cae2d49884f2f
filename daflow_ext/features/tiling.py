"""Large latents in overlapping tiles, blended with a Gaussian window."""

from collections.abc import Callable

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
        self.size, self.patch = tuple(size), patch
        if tile is None:
            self.starts, self.sides = ([0], [0]), self.size
            return
        if tile % patch or overlap % patch or not 0 <= overlap < tile:
            raise ValueError(
                f"tile {tile} and overlap {overlap} must be multiples of {patch}, the overlap smaller than the tile"
            )
        self.sides = tuple(min(tile, side) for side in self.size)
        self.starts = tuple(_starts(side, tile, overlap) for side in self.size)

    def __len__(self) -> int:
        return len(self.starts[0]) * len(self.starts[1])

    def blend(self, run: Callable):
        """run((rows, columns)) -> (velocity or None, taps) on each tile, blended to the whole image.

        Velocities are images [B, F, C, h, w]; taps are token lists [B, F, T, C] per kind and layer.
        """
        image_blend, token_blend = _Blend(self.size), {}
        cells = tuple(side // self.patch for side in self.size)
        for top in self.starts[0]:
            for left in self.starts[1]:
                window = slice(top, top + self.sides[0]), slice(left, left + self.sides[1])
                cell_window = tuple(slice(s.start // self.patch, s.stop // self.patch) for s in window)
                grid = tuple(s.stop - s.start for s in cell_window)
                velocity, taps = run(window)
                if velocity is not None:
                    image_blend.add(velocity, window)
                for kind, layers in taps.items():
                    blends = token_blend.setdefault(kind, {})
                    for layer, tokens in layers.items():
                        image = tokens.unflatten(2, grid).movedim(-1, 2)  # [B, F, C, h, w]
                        blends.setdefault(layer, _Blend(cells)).add(image, cell_window)
        taps = {
            kind: {layer: blend.result().movedim(2, -1).flatten(2, 3) for layer, blend in blends.items()}
            for kind, blends in token_blend.items()
        }
        return image_blend.result(), taps


class _Blend:
    """A weighted sum of overlapping pieces, in float32: the window's corners underflow in half precision."""

    def __init__(self, size: tuple[int, int]):
        self.size, self.total, self.weight, self.dtype = size, None, None, None

    def add(self, piece: torch.Tensor, window: tuple[slice, slice]) -> None:
        if self.total is None:
            self.dtype = piece.dtype
            self.total = piece.new_zeros((*piece.shape[:-2], *self.size), dtype=torch.float32)
            self.weight = piece.new_zeros(self.size, dtype=torch.float32)
        gaussian = _gaussian(piece.shape[-2:]).to(piece.device)
        self.total[(..., *window)] += piece.float() * gaussian
        self.weight[window] += gaussian

    def result(self) -> torch.Tensor | None:
        return None if self.total is None else (self.total / self.weight).to(self.dtype)


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
