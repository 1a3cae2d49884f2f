"""Degradations by the names that the command line takes."""

import dataclasses

import numpy as np

from ..frames.degrade import CORRUPTIONS, LEVELS, PRESETS, corrupt, degrade

CLEAN = "clean"
"""The level of frames as they are."""


@dataclasses.dataclass(frozen=True)
class Degradation:
    """What ``degrade=`` of a data set takes: a preset, or one corruption at a severity (0: a preset)."""

    name: str
    which: str
    severity: int = 0

    def __call__(self, frames: np.ndarray, seed: int) -> np.ndarray:
        if self.severity:
            return np.asarray(corrupt(frames, self.which, self.severity, seed))
        return np.asarray(degrade(frames, self.which, seed))


def degradations(spec: str) -> list[Degradation]:
    """The degradations that a word stands for.

    ``3`` or ``level3``: a severity level. ``realbasicvsr``: a preset. ``levels``: all five. ``fog`` or ``fog:2``: a
    corruption at severity 3 or 2. ``corruptions`` or ``corruptions:2``: all twenty.

    Raises:
        ValueError: anything else; the message lists what exists.
    """
    word, _, severity = spec.partition(":")
    if word == "levels" and not severity:
        return [Degradation(f"level{level}", f"level{level}") for level in LEVELS]
    preset = f"level{word}" if word.isdigit() else word
    if preset in PRESETS and not severity:
        return [Degradation(preset, preset)]
    names = sorted(CORRUPTIONS) if word == "corruptions" else [word] if word in CORRUPTIONS else []
    if names and severity in ("", "1", "2", "3", "4", "5"):
        strength = int(severity or 3)
        return [Degradation(f"{name}:{strength}", name, strength) for name in names]
    raise ValueError(
        f"no degradation {spec!r}; expected a level 1..5, levels, a preset ({', '.join(PRESETS)}) or a corruption with "
        f"an optional severity, as fog:2 ({', '.join(sorted(CORRUPTIONS))}; corruptions for all)"
    )
