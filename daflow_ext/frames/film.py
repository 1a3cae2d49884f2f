"""Writes frames as a video file, one frame at a time."""

import os
from collections.abc import Iterable
from fractions import Fraction

import torch

from ._files import atomic_path
from .padding import InputPadder

QUALITY = 18
"""Constant rate factor of H.264: hardly a difference to see."""


def write_video(path: str | os.PathLike, frames: Iterable[torch.Tensor], fps: float = 24.0) -> int:
    """Write frames as MP4 (H.264, 4:2:0), one held at a time; gives their number. The file appears whole or not at all.

    Odd sides are made even by repeating the edge.

    Shapes: uint8 [3, H, W], all of one size.
    Raises:
        ValueError: no frame, a frame of another kind or size, a rate that is not positive, no encoder for H.264.
    """
    import av  # imported where used, it costs a tenth of a second

    if not 0 < fps < float("inf"):
        raise ValueError(f"write_video: fps must be a positive number, got {fps}")
    count, shape, stream = 0, None, None
    with atomic_path(path) as temporary, av.open(f"file:{temporary}", "w", format="mp4") as container:
        for frame in frames:
            if stream is None:
                shape = frame.shape
                stream = _open_stream(container, frame, fps)
            if frame.dtype != torch.uint8 or frame.shape != shape:
                raise ValueError(
                    f"write_video: frame {count} must be uint8 {list(shape)} as the first, got {frame.dtype} "
                    f"{list(frame.shape)}"
                )
            even = InputPadder(shape, "kitti", multiple=2).pad(frame)[0]
            pixels = even.permute(1, 2, 0).contiguous().numpy()
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            count += 1
        if stream is None:
            raise ValueError(f"write_video: there is no frame to write to {path}")
        container.mux(stream.encode(None))
    return count


def _open_stream(container, frame: torch.Tensor, fps: float):
    import av

    if frame.dim() != 3 or frame.shape[0] != 3 or 0 in frame.shape:
        raise ValueError(f"write_video: frames must be uint8 [3, H, W], got {list(frame.shape)}")
    try:
        options = {"crf": str(QUALITY)}
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=options)
    except ValueError as error:
        raise ValueError(f"the installed PyAV {av.__version__} cannot encode H.264; install its PyPI wheel") from error
    stream.height, stream.width = (side + side % 2 for side in frame.shape[1:])
    stream.pix_fmt = "yuv420p"
    return stream
