"""Runs the recipe over the frames of a clip, one frame in memory at a time."""

import concurrent.futures
import dataclasses
import functools
import itertools
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch

from . import codec, stages, tensor_stages
from .config import DegradeConfig, get_config
from .kernels import make_kernel
from .layout import Frames, Video, check_frame, map_video, seeds_of
from .schedule import PIXELS, Blur, FrameParameters, Resize, Schedule

MIN_SIDE = 8  # no stage makes a side smaller than this (or than it was)


@dataclasses.dataclass
class ClipRecord:
    """What was done to a clip: filled in while its frames pass, complete after the last one."""

    size: tuple[int, int] = (0, 0)
    lq_size: tuple[int, int] = (0, 0)
    parameters: list[FrameParameters] = dataclasses.field(default_factory=list)
    encodings: list[codec.Encoded] = dataclasses.field(default_factory=list)

    def to_dict(self) -> dict:
        """Plain values for JSON, each encoding with its bits per pixel."""
        encodings = [{**dataclasses.asdict(one), "bits_per_pixel": one.bits_per_pixel} for one in self.encodings]
        return {**dataclasses.asdict(self), "encodings": encodings}


class _Backend(NamedTuple):
    """The pixel stages, and the ways in and out of their frame type."""

    stages: ModuleType
    enter: Callable  # uint8 [H, W, 3] -> frame
    leave: Callable  # frame -> uint8 [H, W, 3]


def _backend(device: str | torch.device | None) -> _Backend:
    if device is None:
        return _Backend(stages, stages.from_uint8, stages.to_uint8)

    def enter(frame: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(frame)).to(device).permute(2, 0, 1).float()

    return _Backend(tensor_stages, enter, tensor_stages.to_uint8)


def _kernel(blur: Blur) -> np.ndarray:
    return make_kernel(**dataclasses.asdict(blur))


class _Chain:
    """One clip on its way through the recipe; every method maps a stream of uint8 frames to another."""

    def __init__(self, config: DegradeConfig, seed: int, upscale: bool, backend: _Backend, record: ClipRecord):
        self.config, self.seed, self.upscale, self.record = config, seed, upscale, record
        self.stages, self.enter, self.leave = backend
        self.schedule = Schedule(config, seed)

    def run(self, frames: Iterable[np.ndarray]) -> Frames:
        stream = self._checked(frames)
        for order in range(len(self.config.orders)):
            stream = self._pixels(stream, order)
            compressions = [self._jpeg] if self.config.codec_scope == "none" else [self._jpeg, self._codec]
            for compress in compressions[:-1]:
                stream = compress(stream, order)
            if order < len(self.config.orders) - 1:
                stream = compressions[-1](stream, order)
            else:
                stream = self._final(compressions[-1](self._final(stream, before=True), order), before=False)
        return self._upscaled(stream) if self.upscale else stream

    def _checked(self, frames: Iterable[np.ndarray]) -> Frames:
        for index, frame in enumerate(frames):
            size = check_frame(frame).shape[:2]
            if index == 0:
                scale = self.config.scale
                self.record.size = size
                self.record.lq_size = tuple(max((side + scale // 2) // scale, 1) for side in size)
            elif size != self.record.size:
                raise ValueError(f"frame {index} is {size[1]}x{size[0]} pixels, the first one {self.record.size[::-1]}")
            self.record.parameters.append(self.schedule[index])
            yield frame

    def _pixels(self, frames: Frames, order: int) -> Frames:
        """Unsharp mask (first order only), blur, resize, noise."""
        for index, image in enumerate(frames):
            parameters = self.schedule[index].orders[order]
            frame = self.enter(image)
            if order == 0 and self.config.usm:
                frame = self.stages.unsharp_mask(frame)
            if parameters.blur is not None:
                frame = self.stages.blur(frame, _kernel(parameters.blur))
            size = self._resized(self.stages.size_of(frame), parameters.resize)
            frame = self.stages.resize(frame, size, parameters.resize.interpolation)
            frame = self.stages.add_noise(frame, parameters.noise, self.seed, (PIXELS, order, index))
            yield self.leave(frame)

    def _resized(self, size: tuple[int, int], resize: Resize) -> tuple[int, int]:
        base = self.record.lq_size if resize.base == "lq" else size
        height, width = (max(round(b * resize.factor), min(s, MIN_SIDE)) for b, s in zip(base, size, strict=True))
        return height, width

    def _jpeg(self, frames: Frames, order: int) -> Frames:
        for index, image in enumerate(frames):
            yield stages.jpeg(image, self.schedule[index].orders[order].jpeg_quality)

    def _codec(self, frames: Frames, order: int) -> Frames:
        if self.config.codec_scope == "clip":
            yield from self._encoded(frames, order, 0)
        else:
            for index, image in enumerate(frames):
                yield from self._encoded([image], order, index)

    def _encoded(self, frames: Iterable[np.ndarray], order: int, index: int) -> Frames:
        chosen = self.schedule[index].orders[order].codec
        assert chosen is not None  # the caller has looked
        record = codec.Encoded(chosen.name)
        self.record.encodings.append(record)
        return codec.compress(frames, chosen.bits, chosen.per_pixel, record)

    def _final(self, frames: Frames, *, before: bool) -> Frames:
        """Resize to LQ size and sinc, on the side of the last compression that the schedule says."""
        for index, image in enumerate(frames):
            parameters = self.schedule[index]
            if parameters.final_first != before:
                yield image
                continue
            frame = self.stages.resize(self.enter(image), self.record.lq_size, parameters.final_interpolation)
            if parameters.final_blur is not None:
                frame = self.stages.blur(frame, _kernel(parameters.final_blur))
            yield self.leave(frame)

    def _upscaled(self, frames: Frames) -> Frames:
        for image in frames:
            yield self.leave(self.stages.resize(self.enter(image), self.record.size, "bicubic"))


def degrade_frames(
    frames: Iterable[np.ndarray],
    config: str | int | DegradeConfig = "realbasicvsr",
    seed: int = 0,
    *,
    upscale: bool = True,
    device: str | torch.device | None = None,
    record: ClipRecord | None = None,
) -> Iterator[np.ndarray]:
    """Degrade a clip of any length frame by frame; arguments as in :func:`degrade`.

    Between two encodings only one frame is held; a ``clip`` codec keeps its encoded bytes. ``record`` is filled with
    the parameters and the bits that were spent.

    Shapes: uint8 [H, W, 3] in and out ([H / scale, W / scale, 3] with ``upscale=False``).
    """
    (seed,) = seeds_of(seed, 1)
    record = ClipRecord() if record is None else record
    return _Chain(get_config(config), seed, upscale, _backend(device), record).run(frames)


def degrade(
    video: Video,
    config: str | int | DegradeConfig = "realbasicvsr",
    seed: int | Sequence[int] = 0,
    *,
    upscale: bool = True,
    device: str | torch.device | None = None,
) -> Video:
    """A low-quality version of a video: blur, resize, noise, JPEG and video compression, twice over, 4 times smaller.

    The picture stays where it is: no stage moves content by as much as 0.1 pixels of the source, so the flow of the
    clean video is the flow of the result.

    Args:
        video: RGB, uint8 or float in [0, 255]: NumPy [T, H, W, 3] or [H, W, 3]; torch [B, F, 3, H, W], [F, 3, H, W] or
            [3, H, W].
        config: a preset (``realbasicvsr``, ``star``, ``level1`` .. ``level5``), a level 1..5, or a configuration.
        seed: equal seeds give equal bits (with equal library versions); the clips of a batch take seed, seed + 1, ...
            or one each from a sequence.
        upscale: enlarge the result to the size of ``video`` (bicubic); otherwise it is ``scale`` times smaller.
        device: None runs OpenCV and NumPy; a torch device runs blur, resize and noise there, in PyTorch, with other
            random numbers (JPEG and codecs stay on the CPU).
    Shapes: those of ``video``, or with H / scale, W / scale rounded. Type, dtype and device are those of ``video``; the
        values are whole grey levels.
    Raises:
        TypeError, ValueError: another layout or dtype, values outside [0, 255], an unknown preset, a missing encoder.
    Source: Real-ESRGAN (arXiv 2107.10833); RealBasicVSR (Chan et al., CVPR 2022, arXiv 2111.12704) for the walk over
        time and the video codecs; STAR (Xie et al., ICCV 2025, arXiv 2501.02976).
    """
    chosen = get_config(config)
    return map_video(video, seed, lambda f, s: degrade_frames(f, chosen, s, upscale=upscale, device=device))


def one_thread() -> None:
    """For worker processes: the pool already uses every core."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)


def map_processes(function: Callable, items: Iterable, workers: int) -> Iterator:
    """``function(item)`` for each item, in order, in ``workers`` processes; 1 or fewer stays in this one.

    At most twice as many items as workers are under way, so that long inputs and results do not pile up.
    """
    if workers <= 1:
        yield from map(function, items)
        return
    context = multiprocessing.get_context("spawn")  # a forked process would inherit the locks of torch's threads
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context, initializer=one_thread) as pool:
        items = iter(items)
        waiting = [pool.submit(function, item) for item in itertools.islice(items, 2 * workers)]
        try:
            while waiting:
                yield waiting.pop(0).result()
                waiting += [pool.submit(function, item) for item in itertools.islice(items, 1)]
        finally:
            for future in waiting:
                future.cancel()


def _degrade_one(item: tuple[Video, int], **options: Any) -> Video:
    video, seed = item
    return degrade(video, seed=seed, **options)


def degrade_many(
    videos: Sequence[Video],
    config: str | int | DegradeConfig = "realbasicvsr",
    seed: int | Sequence[int] = 0,
    *,
    workers: int = 1,
    upscale: bool = True,
) -> Iterator[Video]:
    """Degrade clips in ``workers`` processes and yield them in order; the same bits for every number of workers.

    Clip i takes ``seed + i`` (or the i-th of several seeds). As with every process pool, a script that calls this with
    workers > 1 needs ``if __name__ == "__main__":``.
    """
    run = functools.partial(_degrade_one, config=get_config(config), upscale=upscale)
    return map_processes(run, zip(videos, seeds_of(seed, len(videos)), strict=True), workers)
