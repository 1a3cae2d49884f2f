"""Training clips as a function of (seed, number): runs, resumed or parallel, see the same ones in the same order."""

import dataclasses
import functools
import signal
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch

from ..datasets import CLEAN, Clip, Degradation, degradations, open_dataset, worker_init
from ..frames.degrade.schedule import random_stream
from .augment import jitter, random_crop
from .config import Config, DataConfig

SCENES = "scenes"
ENDLESS = 10**9
"""Rendered clips are made when they are asked for."""

Batch = dict[str, torch.Tensor]


class Source(Protocol):
    """A map-style data set of clips."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Clip: ...


def open_source(config: DataConfig, **changes: Any) -> Source:
    """The clips of ``config``, not yet cropped or degraded.

    Raises:
        ValueError, LayoutError: an unknown source or option, a folder that is not the data set.
    """
    options = {**config.options, **changes}
    root = options.pop("root", config.root)
    if config.source == SCENES:
        from ..datasets.scenes import Scenes

        return Scenes(**{"length": ENDLESS, "size": config.crop, "frames": config.frames, **options})
    return open_dataset(config.source, root, **{"clip": config.frames, "every_pair": True, **options})


class TrainingClips(torch.utils.data.Dataset[Batch]):
    """Sample ``n`` of an endless stream: clip, crop, colours and degradation are drawn from (seed, n) alone.

    A sample is a dictionary: ``lq``, ``hq`` uint8 [T, 3, H, W], and where the source has truth ``flow`` float32
    [T-1, 2, H, W] with ``valid`` bool [T-1, H, W].

    Args:
        shuffle: visit the source in another order in every pass; rendered scenes are random already.
        truth: raise where a clip has no flow.
    """

    def __init__(self, source: Source, config: DataConfig, seed: int, *, truth: bool = True):
        self.source, self.config, self.seed, self.truth = source, config, seed, truth
        self.shuffle = config.source != SCENES
        self.choices = _weighted(config.degrade.choices)

    def __getitem__(self, number: int) -> Batch:
        rng = random_stream(self.seed, number)
        clip = self.source[self._item(number)]
        if self.truth and clip.flow is None:
            raise ValueError(f"{clip.meta['name']} has no flow to train with; is the split one with ground truth?")
        augment = self.config.augment
        frames, flow, valid = random_crop(clip.frames, clip.flow, clip.valid, self.config.crop, augment, rng)
        frames = jitter(frames, augment, rng)
        degradation = self._degradation(rng)
        lq = frames if degradation is None else degradation(frames, int(rng.integers(2**31)))
        return sample(frames, lq, flow, valid)

    def _item(self, number: int) -> int:
        epoch, place = divmod(number, len(self.source))
        return int(_order(self.seed, epoch, len(self.source))[place]) if self.shuffle else place

    def _degradation(self, rng: np.random.Generator) -> Degradation | None:
        if rng.random() < self.config.degrade.clean:
            return None
        weights = np.array([weight for _, weight in self.choices])
        return self.choices[int(rng.choice(len(weights), p=weights / weights.sum()))][0]


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, length: int) -> np.ndarray:
    return random_stream(seed, 1 << 40, epoch).permutation(length)


def _weighted(choices: dict[str, Any]) -> list[tuple[Degradation, float]]:
    found = []
    for word, weight in choices.items():
        several = degradations(str(word))
        found += [(one, float(weight) / len(several)) for one in several]
    return found


def sample(frames: np.ndarray, lq: np.ndarray, flow: np.ndarray | None, valid: np.ndarray | None) -> Batch:
    """NumPy, channels last, to tensors, channels first."""
    made = {"hq": _channels_first(frames), "lq": _channels_first(lq)}
    if flow is not None and valid is not None:
        made |= {"flow": _channels_first(flow), "valid": torch.from_numpy(np.ascontiguousarray(valid))}
    return made


def _channels_first(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))


def open_clips(config: Config, *, truth: bool) -> "tuple[TrainingClips, HeldOut | None]":
    """Training and validation clips of a configuration; the first one is made, to say here what is wrong with it."""
    clips = TrainingClips(open_source(config.data), config.data, config.train.seed, truth=truth)
    clips[0]
    return clips, open_held_out(config)


def open_held_out(config: Config) -> "HeldOut | None":
    """The validation clips of a configuration, None where it asks for none.

    Raises:
        ValueError: nothing sets them apart from the training clips.
    """
    validation = config.validation
    if not validation.every:
        return None
    if not validation.options and validation.root is None:
        raise ValueError(
            "validation would score training clips: set validation.options (as split: validation) or validation.root, "
            "or validation.every to 0"
        )
    changes = dict(validation.options) | ({} if validation.root is None else {"root": validation.root})
    for level in validation.levels:
        degradation_of(level)  # says what is wrong before the clips are read
    return HeldOut(open_source(config.data, **changes), config.data.crop, validation.clips, 0)


class HeldOut:
    """Validation clips, the centre of each, at named levels; the same ones each time.

    ``clips(level)`` gives :class:`Clip` objects with ``lq`` set (None at "clean").
    """

    def __init__(self, source: Source, crop: tuple[int, int], count: int, seed: int):
        self.crop, self.seed = crop, seed
        count = min(count, len(source))
        places = np.linspace(0, len(source) - 1, count).round().astype(int) if count < len(source) else range(count)
        self.items = [centre(source[int(place)], crop) for place in places]

    def clips(self, level: str) -> Iterator[Clip]:
        """Raises ValueError for a word that is not exactly one degradation."""
        one = degradation_of(level)
        for place, clip in enumerate(self.items):
            lq = None if one is None else one(clip.frames, int(random_stream(self.seed, place).integers(2**31)))
            yield dataclasses.replace(clip, lq=lq)


def degradation_of(level: str) -> Degradation | None:
    """None for "clean"."""
    if level == CLEAN:
        return None
    found = degradations(level)
    if len(found) != 1:
        raise ValueError(f"validation.levels: {level!r} stands for {len(found)} degradations; name one")
    return found[0]


def centre(clip: Clip, crop: tuple[int, int]) -> Clip:
    """The middle of a clip, at most ``crop`` large, sides multiples of 16."""
    height, width = clip.frames.shape[1:3]
    size = [min(full, part) // 16 * 16 for full, part in zip((height, width), crop, strict=True)]
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    window = np.s_[:, top : top + size[0], left : left + size[1]]
    flow, valid = (None if one is None else one[window] for one in (clip.flow, clip.valid))
    return dataclasses.replace(clip, frames=np.ascontiguousarray(clip.frames[window]), flow=flow, valid=valid, masks={})


class _Numbers:
    """The sample numbers of one process, batch by batch, beginning after ``done`` forward passes of each process."""

    def __init__(self, done: int, total: int, batch: int, rank: int, world: int):
        self.done, self.total, self.batch, self.rank, self.world = done, total, batch, rank, world

    def __iter__(self) -> Iterator[list[int]]:
        for micro in range(self.done, self.total):
            first = (micro * self.world + self.rank) * self.batch
            yield list(range(first, first + self.batch))

    def __len__(self) -> int:
        return self.total - self.done


def _start_worker(worker: int) -> None:
    worker_init(worker)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # sent to all processes of a job; the main one ends its workers


def loader(
    dataset: TrainingClips, *, done: int, total: int, batch: int, rank: int, world: int, workers: int
) -> torch.utils.data.DataLoader:
    """Batches ``done`` .. ``total`` of this process; which clips they hold does not depend on ``workers``."""
    return torch.utils.data.DataLoader(
        dataset,
        batch_sampler=_Numbers(done, total, batch, rank, world),
        num_workers=workers,
        worker_init_fn=_start_worker,
        prefetch_factor=4 if workers else None,
        pin_memory=torch.cuda.is_available(),
    )
