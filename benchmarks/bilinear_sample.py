"""bilinear_sample beside grid_sample, for both memory layouts: warping a feature map by a smooth flow.

The share is that of a copy of map, coordinates and result in the same process. Gradients on CUDA are deterministic
in ours, and sums of atomics in grid_sample.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from daflow_ext import ops

from . import roofline, timing
from .corr_block import CHANNELS, Grid, inputs

OP = "bilinear_sample"
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


def records(quick: bool, device: str) -> Iterator[timing.Record]:
    """One grid when quick, and that of 1080p."""
    for grid in ((55, 128),) if quick else ((55, 128), (135, 240)):
        for layout in LAYOUTS:
            yield from layout_records(grid, layout, device)


def layout_records(grid: Grid, layout: str, device: str) -> Iterator[timing.Record]:
    """Forward, and the gradients of map and coordinates."""
    feat, _, coords = inputs(grid, device)
    feat = feat.contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
    coords = coords[-1].contiguous().requires_grad_()
    size = torch.tensor([grid[1] - 1, grid[0] - 1], device=device)

    def grid_sample() -> torch.Tensor:
        return F.grid_sample(feat, 2 * coords.permute(0, 2, 3, 1) / size - 1, align_corners=True)

    ways: dict[str, Callable[[], torch.Tensor]] = {
        "ours": lambda: ops.bilinear_sample(feat, coords),
        "grid_sample": grid_sample,
    }
    case = f"{grid[0]}x{grid[1]}, {CHANNELS} channels, {layout}"
    with torch.no_grad():
        error = timing.gate("sample", ways["ours"](), grid_sample(), atol=1e-3)
        times = timing.interleaved(ways, repeats=15, warmup=2, device=device, budget=10.0)
        work, ceilings = roofline.count(ways["ours"]), roofline.Ceilings.of(device)
    share, details = work.percent(times["ours"].median, ceilings), work.details(times["ours"], ceilings)
    yield timing.Record(OP, f"forward, {case}", share, "% of a copy", details=details)
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
