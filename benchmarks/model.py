"""Whole RAFT-large on a frame of Sintel's size, against the plain model; ways of ours beside it."""

from collections.abc import Callable, Iterator

import torch

from daflow_ext.models import RAFT

from . import roofline, timing
from .plain import PlainRAFT

OP = "model"
HEIGHT, WIDTH, ITERS = 440, 1024, 12  # Sintel's 436 rows, padded
GOAL = 1.3


def records(quick: bool, device: str) -> Iterator[timing.Record]:
    """Time and peak memory of one forward pass with random weights: the arithmetic does not depend on them."""
    height = 128 if quick else HEIGHT
    yield from time_records(height, device, quick)
    yield memory_record(height, device)


def frames(height: int, device: str) -> list[torch.Tensor]:
    """Two images of noise."""
    generator = torch.Generator().manual_seed(0)
    return [255 * torch.rand(1, 3, height, WIDTH, generator=generator).to(device) for _ in range(2)]


def time_records(height: int, device: str, quick: bool) -> Iterator[timing.Record]:
    """How many times faster than every other way; the flow of two iterations must agree first."""
    images, ways = frames(height, device), candidates(device, compiled=not quick)
    with torch.inference_mode():
        truth = ways["plain"](*images, 2)[1]
        for name, way in ways.items():
            timing.gate(name, way(*images, 2)[1], truth, atol=2e-3)  # image pixels: eight times those of the grid
        calls = {name: lambda way=way: way(*images, ITERS) for name, way in ways.items()}
        work, ceilings = roofline.count(calls["on_the_fly"]), roofline.Ceilings.of(device)
        times = timing.interleaved(calls, repeats=2 if quick else 3, warmup=0, device=device)
    ours = times.pop("on_the_fly")
    for other, time in times.items():
        yield timing.Record(
            OP,
            f"RAFT-large {height}x{WIDTH}, {ITERS} iterations, on_the_fly",
            time.median / ours.median,
            f"x {other}",
            goal=GOAL if other == "plain" and not quick else None,
            details={**work.details(ours, ceilings), other: work.share(time, ceilings)},
        )


def memory_case(way: str, height: int, device: str = "cpu") -> Callable[[], torch.Tensor]:
    """For :func:`timing.peak_bytes`: one forward pass."""
    images, model = frames(height, device), candidates(device)[way]

    def call(size: int | None = None) -> torch.Tensor:
        with torch.inference_mode():
            return model(*(image[..., :size, :size] for image in images), ITERS)[1]

    call(128)  # libraries loaded
    return call


def memory_record(height: int, device: str) -> timing.Record:
    """Peak beyond images and weights, against the plain model's."""
    ours, plain = (
        timing.peak_bytes("benchmarks.model:memory_case", way=way, height=height, device=device)
        for way in ("on_the_fly", "plain")
    )
    return timing.Record(
        OP,
        f"peak memory, RAFT-large {height}x{WIDTH}, on_the_fly",
        100 * ours / plain,
        "% of plain",
        details={"peak_mib": round(ours / 2**20, 1), "plain_peak_mib": round(plain / 2**20, 1)},
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
