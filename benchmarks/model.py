"""Whole RAFT-large on a frame of Sintel's size: windows on the fly against a stored volume."""

from collections.abc import Iterator

import torch

from daflow_ext.models import RAFT

from . import timing
from .plain import PlainCorrBlock

OP = "model"
HEIGHT, WIDTH, ITERS = 440, 1024, 12  # Sintel's 436 rows, padded


class PlainRAFT(RAFT):
    """RAFT with the plain all-pairs block, the way RAFT itself runs."""

    def correlation(self, fmap1: torch.Tensor, fmap2: torch.Tensor, lookups: int = ITERS) -> PlainCorrBlock:
        return PlainCorrBlock(fmap1, fmap2, self.corr_levels, self.corr_radius)


def records(quick: bool, device: str) -> Iterator[timing.Record]:
    """Time of one forward pass with random weights: the arithmetic does not depend on them."""
    height = 128 if quick else HEIGHT
    generator = torch.Generator().manual_seed(0)
    image1, image2 = (255 * torch.rand(1, 3, height, WIDTH, generator=generator).to(device) for _ in range(2))
    models = {
        "on_the_fly": RAFT(memory="on_the_fly"),
        "volume": RAFT(memory="volume"),
        "plain": PlainRAFT(),
    }
    state = models["plain"].state_dict()
    for model in models.values():
        model.load_state_dict(state)
        model.eval().to(device)

    with torch.inference_mode():
        truth = models["plain"](image1, image2, iters=2, test_mode=True)[0]
        for name, model in models.items():
            timing.gate(name, model(image1, image2, iters=2, test_mode=True)[0], truth, atol=2e-4)
        ways = {
            name: lambda model=model: model(image1, image2, iters=ITERS, test_mode=True)
            for name, model in models.items()
        }
        times = timing.interleaved(ways, repeats=3, warmup=0, device=device)
    ours = times.pop("on_the_fly")
    for other, time in times.items():
        yield timing.Record(
            OP,
            f"RAFT-large {height}x{WIDTH}, {ITERS} iterations, on_the_fly",
            time.median / ours.median,
            f"x {other}",
            goal=1.0,
            details={**ours.milliseconds(), other: time.milliseconds()},
        )
