"""Wall time at one thread and more: one lookup, and whole RAFT-large. Meaningful on an idle machine only."""

import os
import time
from collections.abc import Callable, Iterator

import torch

from daflow_ext import ops
from daflow_ext.models import RAFT

from . import corr_lookup, model, timing
from .corr_block import RADIUS

OP = "threads"
QUICK_GRID, GRID = (55, 128), (135, 240)


def records(quick: bool, device: str) -> Iterator[timing.Record]:
    """How many times faster than on one thread; the results must agree first. Nothing on a GPU, which has none."""
    if device != "cpu":
        return
    yield from _scaling(*_lookup(quick), atol=0.0, repeats=5 if quick else 15)
    yield from _scaling(*_raft(quick), atol=2e-3, repeats=1 if quick else 3)


def thread_counts() -> list[int]:
    """1, 2, 4 ... and all the processors this process may use."""
    most = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return sorted({most, *(2**power for power in range(most.bit_length()) if 2**power <= most)})


def _lookup(quick: bool) -> tuple[str, Callable[[], torch.Tensor]]:
    grid = QUICK_GRID if quick else GRID
    case = corr_lookup.arguments(grid, "cpu", torch.float32)
    return f"lookup, {grid[0]}x{grid[1]}, float32", lambda: ops.corr_lookup(*case, RADIUS)


def _raft(quick: bool) -> tuple[str, Callable[[], torch.Tensor]]:
    height, iters = (128, 2) if quick else (model.HEIGHT, model.ITERS)
    torch.manual_seed(0)
    images = [255 * torch.rand(1, 3, height, model.WIDTH) for _ in range(2)]
    raft = RAFT(memory="on_the_fly").eval()
    case = f"RAFT-large {height}x{model.WIDTH}, {iters} iterations"
    return case, lambda: raft(*images, iters, test_mode=True)[1]


def _scaling(case: str, call: Callable[[], torch.Tensor], atol: float, repeats: int) -> Iterator[timing.Record]:
    def on(count: int) -> torch.Tensor:
        with timing.threads(count):
            return call()

    counts = {f"{count} thread{'s' if count > 1 else ''}": count for count in thread_counts()}
    ways = {name: lambda count=count: on(count) for name, count in counts.items()}
    with torch.inference_mode():
        truth = on(1)
        for name, way in ways.items():
            timing.gate(f"{case}, {name}", way(), truth, atol=atol)
        times = timing.interleaved(ways, repeats=repeats, warmup=0, clock=time.perf_counter)
    for name, wall in times.items():
        speed = times["1 thread"].median / wall.median
        details = {**wall.milliseconds(), "threads": counts[name]}
        yield timing.Record(OP, f"{case}, {name}", speed, "x one thread", details=details)
