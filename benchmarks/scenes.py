"""The scene renderer: 3-frame 256x256 clips per CPU-second, as the loader uses them and with everything known."""

import functools
import hashlib
from collections.abc import Iterator

from daflow_ext.datasets import Scenes

from . import timing

OP = "scenes"
FRAMES, SIDE = 3, 256
GOAL = 60.0  # clips per CPU-second


def records(quick: bool, device: str) -> Iterator[timing.Record]:
    """Clips are drawn anew in every repetition: the number of layers decides the cost of one. Nothing on a GPU."""
    if device != "cpu":
        return
    clips = 30 if quick else 100
    plain, blurred = Scenes(clips, size=(SIDE, SIDE), frames=FRAMES), Scenes(clips, motion_blur=1.0)
    _gate(plain)
    calls = {
        "flow of each pair": (functools.partial(_draw, plain, everything=False), GOAL),
        "flow in both directions, all masks": (functools.partial(_draw, plain, everything=True), GOAL),
        "flow of each pair, all with motion blur": (functools.partial(_draw, blurred, everything=False), None),
    }
    times = timing.interleaved({name: call for name, (call, _) in calls.items()}, repeats=3 if quick else 7)
    for name, (_, goal) in calls.items():
        yield timing.Record(
            OP,
            f"{name}, {FRAMES} frames {SIDE}x{SIDE}",
            clips / times[name].median,
            "clips/CPU-s",
            goal=goal,
            details={**times[name].milliseconds(), "clips": clips},
        )


def _draw(scenes: Scenes, *, everything: bool) -> None:
    for index in range(len(scenes)):
        scenes.render([index], everything=everything)


def _gate(scenes: Scenes) -> None:
    """One thread and three give equal bits."""
    one, three = (scenes.render(range(6), threads=threads) for threads in (1, 3))
    for name in one:
        if hashlib.sha256(one[name]).digest() != hashlib.sha256(three[name]).digest():
            raise timing.WrongResultError(f"{OP}: {name} depends on the number of threads; not timed")
