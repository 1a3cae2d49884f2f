"""Points that travel along the flow of a clip, with the way they came."""

import colorsys
from typing import Any

import cv2
import numpy as np
import torch

from ..ops import bilinear_sample
from .draw import check_picture, line_thickness
from .warp import check_flow


class Trails:
    """Points on a grid, carried from frame to frame by the flow.

        trails = Trails()
        for frame, flow in clip:  # flow: from this frame to the next
            show(trails.draw(frame))
            trails.advance(flow)

    A point ends where it leaves the picture, is occluded, or its vector is unknown; a cell of the grid that holds no
    point gets a new one. Errors add up along a trail: it shows what the flow says, not where the object is.

    Args:
        spacing: pixels between points; default a twenty-fourth of the longer side, at least 12.
        length: frames that a trail reaches back.
    Units: pixels.
    """

    def __init__(self, spacing: int | None = None, length: int = 16):
        if (spacing is not None and spacing < 1) or length < 1:
            raise ValueError(f"Trails: spacing and length must be at least 1, got {spacing} and {length}")
        self.spacing, self.length = spacing or 0, length
        self.points = np.zeros((0, length + 1, 2))  # [N, age, (x, y)], newest first; NaN before a point began
        self._colors = np.zeros((0, 3), np.uint8)
        self._size = (0, 0)  # of the first picture or flow, which also decides a spacing that is not given

    @property
    def positions(self) -> torch.Tensor:
        """Where the points are, float64 [N, 2] as (x, y)."""
        return torch.from_numpy(self.points[:, 0].copy())

    def advance(self, flow: torch.Tensor, occluded: torch.Tensor | None = None) -> None:
        """Move every point by the flow to the next frame.

        Shapes: flow [2, H, W]; occluded bool [H, W], pixels that the next frame does not show.
        Raises:
            ValueError: shapes that do not fit, another size than before.
        """
        check_flow("Trails.advance", "flow", flow)
        self._begin(flow.shape[-2], flow.shape[-1])
        if len(self.points) == 0:
            return
        height, width = self._size
        here = torch.from_numpy(self.points[:, 0])
        coords = here.T.float()[None, :, None]  # [1, 2, 1, N]
        vectors: Any = bilinear_sample(flow.detach().float().cpu()[None], coords, padding="border", backend="reference")
        target = here + vectors[0, :, 0].T
        alive = ((target >= 0) & (target <= torch.tensor([width - 1, height - 1]))).all(1)  # False for NaN
        if occluded is not None:
            x, y = here.round().long().T
            alive &= ~occluded.cpu()[y, x]
        moved = np.concatenate([target.double().numpy()[:, None], self.points[:, :-1]], 1)
        self.points, self._colors = moved[alive.numpy()], self._colors[alive.numpy()]
        self._seed()

    def draw(self, image: torch.Tensor) -> torch.Tensor:
        """The picture with the points and their trails; older pieces are darker.

        Shapes: uint8 [3, H, W] -> uint8 [3, H, W].
        Raises:
            ValueError: no picture, or of another size than before.
        """
        check_picture("Trails.draw", image)
        self._begin(image.shape[1], image.shape[2])
        canvas = np.ascontiguousarray(image.cpu().permute(1, 2, 0).numpy())
        fixed = np.round(np.nan_to_num(self.points) * 16).astype(int)
        thickness = line_thickness(self._size)
        for age in range(self.length, 0, -1):
            fade = 1 - 0.7 * age / self.length
            for index in np.flatnonzero(~np.isnan(self.points[:, age, 0])):
                color = tuple(int(fade * value) for value in self._colors[index])
                cv2.line(
                    canvas, fixed[index, age].tolist(), fixed[index, age - 1].tolist(), color, thickness, cv2.LINE_AA, 4
                )
        for point, ink in zip(fixed[:, 0].tolist(), self._colors.tolist(), strict=True):
            cv2.circle(canvas, point, (thickness + 1) * 16, ink, -1, cv2.LINE_AA, 4)
        return torch.from_numpy(canvas).permute(2, 0, 1).contiguous()

    def _begin(self, height: int, width: int) -> None:
        if self._size == (0, 0):
            self._size = (height, width)
            self.spacing = self.spacing or max(12, max(self._size) // 24)
            self._seed()
        elif self._size != (height, width):
            raise ValueError(f"Trails: a picture or flow of {[height, width]} after one of {list(self._size)}")

    def _seed(self) -> None:
        """A point in the middle of every cell without one, coloured after its height in the picture."""
        height, width = self._size
        rows, columns = (np.arange(self.spacing // 2, side, self.spacing) for side in (height, width))
        taken = np.zeros((-(-height // self.spacing), -(-width // self.spacing)), dtype=bool)
        cells = (self.points[:, 0] // self.spacing).astype(int)
        taken[cells[:, 1], cells[:, 0]] = True
        fresh = [(x, y) for y in rows for x in columns if not taken[y // self.spacing, x // self.spacing]]
        if fresh:
            points = np.full((len(fresh), self.length + 1, 2), np.nan)
            points[:, 0] = fresh
            hues = [colorsys.hsv_to_rgb(0.85 * y / height, 0.75, 1.0) for _, y in fresh]
            self.points = np.concatenate([self.points, points])
            self._colors = np.concatenate([self._colors, (255 * np.array(hues)).astype(np.uint8)])
