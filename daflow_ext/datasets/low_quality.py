"""The low-quality side of a clip: degraded on the fly, or read from a folder made before."""

import os
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ..frames.degrade import clip_seed, stages
from ..frames.io import IMAGE_SUFFIXES, _natural_key
from .sources import FrameSource, ImageFrames, VideoFrames

if TYPE_CHECKING:
    from .base import FlowSequence

Degrade = Callable[[np.ndarray, int], np.ndarray]


class LowQuality:
    """Frames of the same clip in low quality; :meth:`choose` picks how."""

    epoch = 0

    @staticmethod
    def choose(
        dataset: str,
        root: pathlib.Path,
        degrade: Degrade | None,
        lq_root: str | os.PathLike | None,
        window: int | str | None,
        seed: int,
    ) -> "LowQuality | None":
        """None without degradation.

        Raises:
            ValueError: both ways at once, a window that is no number or "sequence", a folder that does not exist.
        """
        if window is not None and window != "sequence" and not (isinstance(window, int) and window >= 1):
            raise ValueError(f"{dataset}: lq_window must be 'sequence', a number of frames or None, got {window!r}")
        if degrade is not None and lq_root is not None:
            raise ValueError(f"{dataset}: give degrade or lq_root, not both")
        if lq_root is not None:
            return Precomputed(root, pathlib.Path(lq_root))
        return None if degrade is None else Degraded(degrade, window, seed)

    def __call__(self, sequence: "FlowSequence", first: int, frames: np.ndarray) -> np.ndarray:
        """Low quality of ``frames``, which begin at position ``first`` of the sequence."""
        raise NotImplementedError


class Degraded(LowQuality):
    """Degrades a window of the sequence and cuts the clip from it; the last window is kept."""

    def __init__(self, degrade: Degrade, window: int | str | None, seed: int):
        self.degrade, self.window, self.seed = degrade, window, seed
        self._kept: tuple[tuple, np.ndarray] | None = None

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_kept": None}

    def __call__(self, sequence: "FlowSequence", first: int, frames: np.ndarray) -> np.ndarray:
        start, stop = self._window(len(sequence.frames), first, len(frames))
        key = (sequence.name, start, stop, self.epoch)
        if self._kept is None or self._kept[0] != key:
            whole = frames if stop - start == len(frames) else sequence.frames.read(start, stop)
            self._kept = key, self._degrade(whole, self._seed(sequence, start, stop))
        return self._kept[1][first - start : first - start + len(frames)]

    def _window(self, length: int, first: int, count: int) -> tuple[int, int]:
        if isinstance(self.window, str):  # "sequence"
            return 0, length
        size = min(max(self.window or count, count), length)
        if size == count:
            return first, first + count
        # windows overlap by a clip, so that every clip lies in one; the last is shifted back
        step = size - count + 1
        start = min(first // step * step, length - size)
        return start, start + size

    def _seed(self, sequence: "FlowSequence", start: int, stop: int) -> int:
        """Of a whole sequence: the seed that ``daflow degrade`` gives a clip of that name, so that pixels agree."""
        if (start, stop, self.epoch) == (0, len(sequence.frames), 0):
            return clip_seed(self.seed, sequence.name)
        return clip_seed(self.seed, f"{sequence.name}/{start}-{stop}/{self.epoch}")

    def _degrade(self, frames: np.ndarray, seed: int) -> np.ndarray:
        result = np.asarray(self.degrade(frames, seed))
        if result.shape != frames.shape or result.dtype != np.uint8:
            raise TypeError(
                f"degrade must return uint8 {frames.shape} for such frames, it returned {result.dtype} {result.shape}"
            )
        return result


class Precomputed(LowQuality):
    """Reads low-quality frames that lie under ``lq_root`` as the originals lie under ``root``.

    Smaller frames (a quarter of the side) are enlarged to the size of the originals as the degradation does it.
    """

    def __init__(self, root: pathlib.Path, lq_root: pathlib.Path):
        if not lq_root.is_dir():
            raise ValueError(f"lq_root {lq_root} is no folder")
        self.root, self.lq_root = root, lq_root
        self._open: tuple[str, FrameSource] | None = None

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_open": None}

    def __call__(self, sequence: "FlowSequence", first: int, frames: np.ndarray) -> np.ndarray:
        if self._open is None or self._open[0] != sequence.name:
            source = self._source(sequence.frames)
            if len(source) != len(sequence.frames):  # a frame that is left out would shift all later ones
                raise ValueError(
                    f"low quality of {sequence.name} has {len(source)} frames ({source.files[0].parent}), "
                    f"the original has {len(sequence.frames)}"
                )
            self._open = sequence.name, source
        lq = self._open[1].read(first, first + len(frames))
        height, width = frames.shape[1:3]
        if lq.shape[1:3] == (height, width):
            return lq
        if any(abs(side * 4 - full) >= 4 for side, full in zip(lq.shape[1:3], (height, width), strict=True)):
            raise ValueError(
                f"low-quality frames of {sequence.name} are {lq.shape[2]}x{lq.shape[1]}; {width}x{height} or a quarter "
                "of each side was expected"
            )
        large = (stages.resize(stages.from_uint8(frame), (height, width), "bicubic") for frame in lq)
        return np.stack([stages.to_uint8(frame) for frame in large])

    def _source(self, frames: FrameSource) -> FrameSource:
        mirrored = [self.lq_root / path.relative_to(self.root) for path in frames.files]
        if isinstance(frames, ImageFrames):
            return ImageFrames([self._image(path) for path in mirrored], frames.names)
        if mirrored[0].is_file():
            return VideoFrames(mirrored[0])
        folder = mirrored[0] if mirrored[0].is_dir() else mirrored[0].with_suffix("")
        if not folder.is_dir():
            raise ValueError(f"neither the video {mirrored[0]} nor the folder of frames {folder} exists")
        images = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES]
        if not images:
            raise ValueError(f"{folder} holds no images; low quality of {mirrored[0]} was expected")
        images.sort(key=_natural_key)
        return ImageFrames(images)

    @staticmethod
    def _image(path: pathlib.Path) -> pathlib.Path:
        png = path.with_suffix(".png")  # evaluation sets are stored as PNG whatever the originals were
        return png if png.is_file() or not path.is_file() else path
