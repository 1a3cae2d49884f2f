"""Reads videos frame by frame through PyAV (FFmpeg)."""

import contextlib
import os
import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import torch

from ._files import existing_file


class Video:
    """The frames of a video file, decoded as they are asked for, turned as the file's rotation says.

    Attributes:
        source: the path. length: the number of frames that the header states or lets us estimate, None if neither;
        some files (variable rate, AVI with dropped frames) hold fewer. fps: mean frames per second, None if unstated.
        paths: that one file.
    Yields uint8 [3, H, W] RGB frames. A damaged or truncated file yields every whole frame and then raises ValueError
    that names the file and the frame.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a video, or its index is cut off.
    """

    def __init__(self, path: str | os.PathLike):
        import av  # here and below: imported where used, it costs a tenth of a second

        self.paths = [existing_file(path)]
        self.source = str(path)
        try:
            with self._open() as container:
                if not container.streams.video:
                    raise ValueError(f"{path} holds no video stream")
                stream = container.streams.video[0]
                if stream.codec_context is None:
                    raise ValueError(f"{path} cannot be opened as a video: there is no decoder for its codec")
                rate = stream.average_rate
                self.fps = float(rate) if rate else None
                self.length = stream.frames or self._estimate(stream, container, rate)
        except av.error.FFmpegError as error:
            raise ValueError(f"{path} cannot be opened as a video ({error.strerror}): unknown or truncated") from error

    def _open(self) -> Any:
        import av

        return av.open(f"file:{self.source}")  # else a colon in the name would end a protocol's

    @staticmethod
    def _estimate(stream: Any, container: Any, rate: Fraction | None) -> int | None:
        if not rate:
            return None
        if stream.duration:
            return round(stream.duration * stream.time_base * rate)
        return round(container.duration / 1_000_000 * rate) if container.duration else None

    def name(self, index: int) -> str:
        """The name that files made from frame ``index`` get."""
        return f"{self.paths[0].stem}_{index:06d}"

    def __iter__(self) -> Iterator[torch.Tensor]:
        with self._open() as container:
            stream = container.streams.video[0]
            first, count, end = None, 0, 0
            for frame in self._decode(container, stream):
                image = self._to_image(frame)
                first = image.shape if first is None else first
                if image.shape != first:
                    raise ValueError(
                        f"{self.source} changes its size at frame {count}: {image.shape[2]}x{image.shape[1]} "
                        f"after {first[2]}x{first[1]}"
                    )
                yield image
                count += 1
                end = (frame.pts or 0) + (frame.duration or 0) - (stream.start_time or 0)
            # Fewer frames than stated is no proof: AVI headers count dropped frames, edit lists hide some. So time must
            # be missing too, at least half a frame.
            missing_time = (stream.duration or 0) - end
            if count < stream.frames and missing_time * 2 * count >= end:
                raise self._ends_early(count, f"its header states {stream.frames} frames")
            # Matroska states no number of frames, only a time; two mean frames of slack, as the last one may have none
            stated, reached = _tagged_seconds(stream), float(end * stream.time_base)
            if not stream.frames and (stated - reached) * max(count, 1) > 2 * reached:
                raise self._ends_early(count, f"its header states {stated:.2f} s, {reached:.2f} s are there")

    def _decode(self, container: Any, stream: Any) -> Iterator:
        """Frames in display order; whole ones that the decoder still held are given before an error is raised."""
        import av

        count = 0
        try:
            for packet in container.demux(stream):
                if packet.is_corrupt:
                    damage = "its data is cut off or damaged"
                    break
                for frame in packet.decode():
                    if frame.is_corrupt:
                        raise self._ends_early(count, "it is damaged")
                    yield frame
                    count += 1
            else:
                return
        except av.error.FFmpegError as error:
            damage = error.strerror or "it is damaged"
        with contextlib.suppress(av.error.FFmpegError):  # the damage itself is raised below
            for frame in stream.codec_context.decode(None):
                yield frame
                count += 1
        raise self._ends_early(count, damage)

    def _ends_early(self, count: int, why: str) -> ValueError:
        return ValueError(f"the video {self.source} ends early: frame {count} cannot be read ({why})")

    @staticmethod
    def _to_image(frame: Any) -> torch.Tensor:
        image = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
        quarter_turns = round(getattr(frame, "rotation", 0) / 90)  # counter-clockwise; PyAV before 13 does not tell
        return torch.rot90(image, quarter_turns, (1, 2)).contiguous()


def _tagged_seconds(stream: Any) -> float:
    """The duration that Matroska muxers write as a tag (H:MM:SS.fraction); 0 without one."""
    match = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d*)?)", stream.metadata.get("DURATION", ""))
    return int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3]) if match else 0.0
