"""Zero-shot correspondence: how well queries and keys of each layer and denoising step match, without training."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from ..features.restoration import LiftedRestoration
from ..ops import softargmax_flow


@dataclasses.dataclass
class ZeroShotTable:
    """End-point error per denoising step and layer.

    Shapes:
        total: [steps, layers], sum of errors in pixels; count: valid pixels summed over.
    """

    layers: tuple[int, ...]
    timesteps: tuple[float, ...]
    total: torch.Tensor
    count: int

    @property
    def epe(self) -> torch.Tensor:
        """[steps, layers], pixels."""
        return self.total / max(self.count, 1)

    def best(self, number: int = 4) -> list[int]:
        """The layers of least error, averaged over the steps, best first."""
        order = self.epe.mean(0).argsort(stable=True)
        return [self.layers[index] for index in order[:number].tolist()]

    def __add__(self, other: "ZeroShotTable") -> "ZeroShotTable":
        if (self.layers, self.timesteps) != (other.layers, other.timesteps):
            raise ValueError(f"tables differ: {self.layers}, {self.timesteps} and {other.layers}, {other.timesteps}")
        return dataclasses.replace(self, total=self.total + other.total, count=self.count + other.count)


def zero_shot_flow(
    query: torch.Tensor,
    key: torch.Tensor,
    grid: tuple[int, int],
    size: tuple[int, int],
    *,
    cell: int,
    temperature: float,
    mode: str = "global",
    radius: int | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """Flow from the frame of ``query`` to the frame of ``key``, upsampled to the image.

    Shapes:
        query, key: [P, T, C] on the token grid; returns [P, 2, H, W] with ``size`` = (H, W).
    Units:
        pixels; ``cell`` pixels per token.
    """
    flow = softargmax_flow(query, key, grid, temperature=temperature, mode=mode, radius=radius, backend=backend)
    padded = (grid[0] * cell, grid[1] * cell)
    # token centres lie in the middle of their cells, which is what align_corners=False means
    assert isinstance(flow, torch.Tensor)  # details were not asked for
    flow = F.interpolate(cell * flow.float(), padded, mode="bilinear", align_corners=False)
    top, left = (padded[0] - size[0]) // 2, (padded[1] - size[1]) // 2  # where InputPadder put the image
    return flow[..., top : top + size[0], left : left + size[1]]


@torch.no_grad()
def analyze_clip(
    restoration: LiftedRestoration,
    frames: torch.Tensor,
    flow: torch.Tensor,
    valid: torch.Tensor,
    *,
    layers: Sequence[int],
    num_inference_steps: int,
    temperature: float,
    generator: torch.Generator | None = None,
    **options: Any,
) -> ZeroShotTable:
    """Errors of one clip against its true flow.

    Shapes:
        frames: [F, 3, H, W], RGB in [0, 255]. flow: [F-1, 2, H, W] from frame k to k+1. valid: bool [F-1, H, W].
    Args:
        options: of :func:`zero_shot_flow` (mode, radius, backend).
    """
    if flow.shape != (frames.shape[0] - 1, 2, *frames.shape[-2:]) or valid.shape != (flow.shape[0], *flow.shape[-2:]):
        raise ValueError(
            f"frames are {list(frames.shape)}, so flow must be [{frames.shape[0] - 1}, 2, H, W] and valid without the "
            f"2; got {list(flow.shape)} and {list(valid.shape)}"
        )
    cell = 8 * restoration.transformer.config.patch_size
    totals, timesteps = [], []
    steps = restoration.steps(
        frames[None], num_inference_steps=num_inference_steps, tap_layers=layers, generator=generator
    )
    truth = torch.where(valid[:, None], flow, 0.0)
    for step in steps:
        row = []
        for layer in layers:
            query, key = step.queries[layer][0, :-1], step.keys[layer][0, 1:]
            estimate = zero_shot_flow(
                query,
                key,
                step.grid,
                (frames.shape[-2], frames.shape[-1]),
                cell=cell,
                temperature=temperature,
                **options,
            )
            error = (estimate.cpu() - truth).square().sum(1).sqrt()
            row.append(error[valid].double().sum())
        totals.append(torch.stack(row))
        timesteps.append(step.timestep)
    return ZeroShotTable(tuple(layers), tuple(timesteps), torch.stack(totals), int(valid.sum()))


def heat_map(table: ZeroShotTable) -> torch.Tensor:
    """A picture of the table, uint8 [3, H, W]: layers to the right, steps down, dark = small error; curves below."""
    import cv2
    import numpy as np

    epe = table.epe.numpy()
    steps, layers = epe.shape
    cell_w, cell_h, left, top, plot = 56, 28, 90, 40, 220
    image = np.full((top + steps * cell_h + plot + 60, left + layers * cell_w + 20, 3), 255, np.uint8)
    low, high = float(epe.min()), float(epe.max())
    shade = (255 * (epe - low) / max(high - low, 1e-9)).astype(np.uint8)
    colors = cv2.applyColorMap(shade, cv2.COLORMAP_VIRIDIS)[..., ::-1]

    def text(label: object, x: int, y: int, color: tuple[int, int, int] = (0, 0, 0)) -> None:
        cv2.putText(image, str(label), (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.4, color, 1, cv2.LINE_AA)

    text("zero-shot end-point error (px): layer across, timestep down", 8, 14)
    for column, layer in enumerate(table.layers):
        text(str(layer), left + column * cell_w + 20, top - 6)
    for row, timestep in enumerate(table.timesteps):
        y = top + row * cell_h
        text(f"t={timestep:.0f}", 8, y + 18)
        for column in range(layers):
            x = left + column * cell_w
            cv2.rectangle(image, (x, y), (x + cell_w - 2, y + cell_h - 2), colors[row, column].tolist(), -1)
            text(f"{epe[row, column]:.2f}", x + 8, y + 18, (0, 0, 0) if shade[row, column] > 150 else (255, 255, 255))
    base = top + steps * cell_h + plot + 20  # curves: one per step, error upward
    for row in range(steps):
        points = [
            (
                left + column * cell_w + cell_w // 2,
                base - int(plot * 0.9 * (epe[row, column] - low) / max(high - low, 1e-9)),
            )
            for column in range(layers)
        ]
        color = cv2.applyColorMap(np.array([[255 * row // max(steps - 1, 1)]], np.uint8), cv2.COLORMAP_COOL)[
            0, 0, ::-1
        ].tolist()
        cv2.polylines(image, [np.array(points, np.int32)], False, color, 2, cv2.LINE_AA)
    text(f"{low:.2f}", 8, base)
    text(f"{high:.2f}", 8, base - int(plot * 0.9))
    text(f"best layers: {', '.join(map(str, table.best()))}", 8, base + 30)
    return torch.from_numpy(image).permute(2, 0, 1).contiguous()
