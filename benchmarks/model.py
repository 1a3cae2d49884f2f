"""Whole RAFT-large on a frame of Sintel's size, against the plain model; ways of ours beside it."""

from collections.abc import Callable, Iterator

import torch

from daflow_ext.models import RAFT

from . import timing
from .plain import PlainRAFT

OP = "model"
HEIGHT, WIDTH, ITERS = 440, 1024, 12  # Sintel's 436 rows, padded
GOAL = 1.3


def records(quick: bool, device: str) -> Iterator[timing.Record]:
    """Time of one forward pass with random weights: the arithmetic does not depend on them."""
    height = 128 if quick else HEIGHT
    generator = torch.Generator().manual_seed(0)
    images = [255 * torch.rand(1, 3, height, WIDTH, generator=generator).to(device) for _ in range(2)]
    ways = candidates(device, compiled=not quick)
    with torch.inference_mode():
        truth = ways["plain"](*images, 2)[1]
        for name, way in ways.items():
            timing.gate(name, way(*images, 2)[1], truth, atol=2e-3)  # image pixels: eight times those of the grid
        calls = {name: lambda way=way: way(*images, ITERS) for name, way in ways.items()}
        times = timing.interleaved(calls, repeats=2 if quick else 3, warmup=0, device=device)
    ours = times.pop("on_the_fly")
    for other, time in times.items():
        yield timing.Record(
            OP,
            f"RAFT-large {height}x{WIDTH}, {ITERS} iterations, on_the_fly",
            time.median / ours.median,
            f"x {other}",
            goal=GOAL if other == "plain" and not quick else None,
            details={**ours.milliseconds(), other: time.milliseconds()},
        )


def candidates(device: str, compiled: bool = False) -> dict[str, Callable]:
    """``way(image1, image2, iters)`` -> flow on the grid, flow of the image; one set of weights.

    Args:
        compiled: also with the update block through torch.compile, which takes most of a minute on a CPU.
    """
    torch.manual_seed(0)
    models = {memory: RAFT(memory=memory).eval().to(device) for memory in ("on_the_fly", "volume")}
    if compiled:
        models["update block compiled"] = RAFT(memory="on_the_fly").eval().to(device)
        models["update block compiled"].update_block.compile()
    for model in models.values():
        model.load_state_dict(models["on_the_fly"].state_dict())
    ways = {name: lambda *args, model=model: model(*args, test_mode=True) for name, model in models.items()}
    ways["plain"] = PlainRAFT(models["on_the_fly"]).eval()
    ways["plain, upsampled once"] = PlainRAFT(models["on_the_fly"], every_step=False).eval()
    return ways
