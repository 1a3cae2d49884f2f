"""Writes videos through PyAV (FFmpeg), one frame at a time."""

import contextlib
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from ._files import atomic_path

VIDEO_SUFFIXES = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}
"""Suffix -> FFmpeg's name of the format."""

# crf 18: hardly a difference to see; veryfast looks ahead few frames, which bounds the memory; cpu-independent gives
# the same bits on every processor
_OPTIONS = {"preset": "veryfast", "crf": "18", "x264-params": "cpu-independent=1"}


def write_video(path: str | os.PathLike, frames: Iterable[torch.Tensor], fps: float = 24.0) -> int:
    """Write frames as a film, one held at a time; gives their number. Otherwise as :func:`video_writer`."""
    count = 0
    with video_writer(path, fps) as add:
        for frame in frames:
            add(frame)
            count += 1
    return count


@contextlib.contextmanager
def video_writer(path: str | os.PathLike, fps: float) -> Iterator[Callable[[torch.Tensor], None]]:
    """A film in H.264 (4:2:0) that any player shows; gives the function that appends a frame.

        with video_writer("out.mp4", fps=25) as add:
            add(frame)

    Frames are encoded as they come, so a film of any length takes constant memory. Odd sides are made even by repeating
    the edge. The file appears whole when the block ends, or not at all.

    Shapes: a frame is uint8 [3, H, W], all of one size.
    Raises:
        ValueError: another suffix than those of ``VIDEO_SUFFIXES``, ``fps`` that is not positive, a folder that does
            not exist, a frame of another kind or size, no frame at all, no encoder for H.264.
    """
    import av  # imported where used, it costs a tenth of a second

    path = pathlib.Path(path)
    check_video_name(path)
    if not 0 < fps < float("inf"):
        raise ValueError(f"write_video: fps must be a positive number, got {fps}")
    kind = VIDEO_SUFFIXES[path.suffix.lower()]
    options = {} if kind == "matroska" else {"movflags": "faststart"}
    # "file:", else a colon in the name would end a protocol's
    with atomic_path(path) as temporary, av.open(f"file:{temporary}", "w", format=kind, options=options) as container:
        film = _Film(container, Fraction(fps).limit_denominator(1001))
        yield film.add
        if film.count == 0:
            raise ValueError(f"write_video: there is no frame to write to {path}")
        film.finish()


def check_video_name(path: str | os.PathLike) -> None:
    """Raise ValueError unless ``path`` ends in one of ``VIDEO_SUFFIXES``."""
    if pathlib.Path(path).suffix.lower() not in VIDEO_SUFFIXES:
        raise ValueError(f"cannot write {path} as a video; expected a name ending in {', '.join(VIDEO_SUFFIXES)}")


class _Film:
    """The stream of a film; opened at the first frame, which has the size."""

    def __init__(self, container: Any, rate: Fraction):
        self.container, self.rate, self.count = container, rate, 0
        self.shape: tuple[int, ...] = ()
        self.stream: Any = None

    def add(self, frame: torch.Tensor) -> None:
        import av

        if self.stream is None:
            self._open(frame)
        if frame.dtype != torch.uint8 or tuple(frame.shape) != self.shape:
            raise ValueError(
                f"write_video: frame {self.count} must be uint8 {list(self.shape)} as the first, got {frame.dtype} "
                f"{list(frame.shape)}"
            )
        pixels = frame.cpu().permute(1, 2, 0).numpy()
        pixels = np.pad(pixels, [(0, self.shape[1] % 2), (0, self.shape[2] % 2), (0, 0)], mode="edge")
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        self.container.mux(self.stream.encode(picture))
        self.count += 1

    def _open(self, frame: torch.Tensor) -> None:
        import av

        if frame.dim() != 3 or frame.shape[0] != 3 or 0 in frame.shape:
            raise ValueError(f"write_video: frames must be uint8 [3, H, W], got {frame.dtype} {list(frame.shape)}")
        try:
            self.stream = self.container.add_stream("libx264", rate=self.rate, options=_OPTIONS)
        except ValueError as error:
            raise ValueError(
                f"the installed PyAV {av.__version__} cannot encode H.264; install its PyPI wheel"
            ) from error
        self.shape = tuple(frame.shape)
        self.stream.height, self.stream.width = (side + side % 2 for side in frame.shape[1:])
        self.stream.pix_fmt = "yuv420p"

    def finish(self) -> None:
        self.container.mux(self.stream.encode(None))
