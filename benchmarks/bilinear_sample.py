"""bilinear_sample beside grid_sample, for both memory layouts: warping feature maps and an image by a smooth flow.

The share is that of a copy of map, coordinates and result in the same process. Gradients on CUDA are deterministic
in ours, and sums of atomics in grid_sample.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from daflow_ext import ops

from . import roofline, timing
from .corr_block import CHANNELS, Grid, smooth_flow

OP = "bilinear_sample"
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


# grid, channels, share of the flow. On 55 x 128 the whole flow changes by about 0.4 pixels per pixel, on the image by
# 0.05: the more it changes, the fewer neighbours read neighbours.
CASES = [
    ((55, 128), CHANNELS, 1.0),
    ((55, 128), CHANNELS, 1 / 6),
    ((135, 240), CHANNELS, 1.0),
    ((436, 1024), 3, 1.0),
]


def records(quick: bool, device: str) -> Iterator[timing.Record]:
    """One case when quick, and those of larger grids."""
    for case in CASES[:1] if quick else CASES:
        for layout in LAYOUTS:
            yield from layout_records(*case, layout, device)


def layout_records(grid: Grid, channels: int, share: float, layout: str, device: str) -> Iterator[timing.Record]:
    """Forward, and the gradients of map and coordinates."""
    generator = torch.Generator().manual_seed(0)
    feat = torch.randn(1, channels, *grid, generator=generator).to(device)
    feat = feat.contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
    y, x = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    coords = (torch.stack([x, y]) + share * smooth_flow(grid, generator)).to(device).requires_grad_()
    size = torch.tensor([grid[1] - 1, grid[0] - 1], device=device)

    def grid_sample() -> torch.Tensor:
        return F.grid_sample(feat, 2 * coords.permute(0, 2, 3, 1) / size - 1, align_corners=True)

    ways: dict[str, Callable[[], torch.Tensor]] = {
        "ours": lambda: ops.bilinear_sample(feat, coords),
        "grid_sample": grid_sample,
    }
    case = f"{grid[0]}x{grid[1]}, {channels} channels, {layout}" + (", smoother flow" if share < 1 else "")
    with torch.no_grad():
        error = timing.gate("sample", ways["ours"](), grid_sample(), atol=1e-3)
        times = timing.interleaved(ways, repeats=15, warmup=2, device=device, budget=10.0)
        work, ceilings = roofline.count(ways["ours"]), roofline.Ceilings.of(device)
    of_copy, details = work.percent(times["ours"].median, ceilings), work.details(times["ours"], ceilings)
    yield timing.Record(OP, f"forward, {case}", of_copy, "% of a copy", details=details)
    yield _ratio(f"forward, {case}", times, error, work, ceilings)

    graphs = {name: way() for name, way in ways.items()}
    upstream = torch.randn(feat.shape, device=device)

    def backward(name: str) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(graphs[name], [feat, coords], upstream, retain_graph=True)

    # gradients of coordinates jump where the floor of a coordinate does: only that of the map is compared
    ours, theirs = backward("ours")[0], backward("grid_sample")[0]
    error = timing.gate("gradient", ours, theirs, atol=1e-3 * theirs.abs().max().item())
    calls = {name: lambda name=name: backward(name) for name in graphs}
    times, work = timing.interleaved(calls, repeats=7, device=device, budget=10.0), roofline.count(calls["ours"])
    yield _ratio(f"backward, {case}", times, error, work, ceilings)


def _ratio(
    case: str, times: dict[str, timing.Timing], error: float, work: roofline.Work, ceilings: roofline.Ceilings
) -> timing.Record:
    ours, theirs = times["ours"], times["grid_sample"]
    details = {**work.details(ours, ceilings), "grid_sample": work.share(theirs, ceilings), "max_error": error}
    return timing.Record(OP, case, theirs.median / ours.median, "x grid_sample", details=details)
