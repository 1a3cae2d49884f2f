"""Where frames come from: image files, or a video file."""

import collections
import gc
import os
import pathlib
import sys
import weakref
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from ..frames.io import read_image
from ..frames.video import Video


class FrameSource(Protocol):
    """Frames by position. ``files`` are what they are read from."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """The name that files made from frame ``index`` get."""

    def read(self, start: int, stop: int) -> np.ndarray:
        """Frames start .. stop-1 as uint8 [F, H, W, 3] RGB."""

    @property
    def files(self) -> Sequence[pathlib.Path]: ...


class ImageFrames:
    """One image file per frame."""

    def __init__(self, files: Sequence[str | os.PathLike], names: Sequence[str] | None = None):
        self.files = tuple(pathlib.Path(path) for path in files)
        self.names = tuple(names) if names is not None else tuple(path.stem for path in self.files)

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        return self.names[index]

    def read(self, start: int, stop: int) -> np.ndarray:
        frames: list[np.ndarray] = []
        for path in self.files[start:stop]:
            frame = read_image(path).permute(1, 2, 0).numpy()
            if frames and frame.shape != frames[0].shape:
                raise ValueError(
                    f"{path} is {frame.shape[1]}x{frame.shape[0]} pixels, "
                    f"{self.files[start]} is {frames[0].shape[1]}x{frames[0].shape[0]}"
                )
            frames.append(frame)
        return np.stack(frames)


class VideoFrames:
    """The frames of a video file, decoded forward; going back starts the file again.

    The number of frames is counted from the packets, because headers estimate it.
    """

    KEEP = 16
    """Decoded frames that are kept, so that overlapping clips decode each frame once."""

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        self.files = (self.path,)
        self._video = Video(self.path)
        self._length = _count_frames(self.path)
        self._restart()
        _OPEN.add(self)

    def __len__(self) -> int:
        return self._length

    def name(self, index: int) -> str:
        return f"{index:06d}"

    def __getstate__(self) -> dict:
        return {"path": self.path}  # a decoder cannot travel to a loader's worker

    def __setstate__(self, state: dict) -> None:
        type(self).__init__(self, state["path"])

    def _restart(self) -> None:
        self._frames: Iterator | None = None
        self._recent: collections.deque[np.ndarray] = collections.deque(maxlen=self.KEEP)
        self._next = 0

    def read(self, start: int, stop: int) -> np.ndarray:
        if self._frames is None or start < self._next - len(self._recent):
            self._restart()
            self._frames = iter(self._video)
        oldest = self._next - len(self._recent)
        frames = [self._recent[index - oldest] for index in range(start, min(stop, self._next))]
        while self._next < stop:
            try:
                frame = next(self._frames, None)
            except (ValueError, OSError):
                self._restart()
                raise
            if frame is None:
                ended = self._next
                self._restart()
                raise ValueError(f"{self.path} ends after {ended} frames, frame {stop - 1} was asked for")
            frame = frame.permute(1, 2, 0).numpy()
            self._recent.append(frame)
            if self._next >= start:
                frames.append(frame)
            self._next += 1
        return np.stack(frames)


class UnreadableVideo:
    """Stands for a video that cannot be opened, so that it counts as a bad item instead of hiding all others."""

    def __init__(self, path: pathlib.Path, reason: str, length: int):
        self.files, self.reason, self._length = (path,), reason, length

    def __len__(self) -> int:
        return self._length

    def name(self, index: int) -> str:
        return f"{index:06d}"

    def read(self, start: int, stop: int) -> np.ndarray:
        raise ValueError(self.reason)


_OPEN: weakref.WeakSet[VideoFrames] = weakref.WeakSet()


def _close_decoders() -> None:
    """Before a fork: a decoder's threads do not follow into the child, which would wait for them when it frees it."""
    for source in _OPEN:
        source._restart()
    if "av" in sys.modules:
        gc.collect()  # decoders in reference cycles, left by errors


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_close_decoders)


def _count_frames(path: pathlib.Path) -> int:
    """Frames that a video's packets hold, without decoding them."""
    import av

    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            return sum(1 for packet in container.demux(stream) if packet.size)
    except av.error.FFmpegError as error:
        raise ValueError(f"{path} cannot be read as a video ({error.strerror})") from error
