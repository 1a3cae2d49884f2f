"""Pixels in: images, folders and videos as RGB tensors, and the padding a network needs."""

from .film import video_writer, write_video
from .io import Frames, ImageSequence, open_frames, read_image, write_image
from .padding import InputPadder
from .video import Video

__all__ = [
    "Frames",
    "ImageSequence",
    "InputPadder",
    "Video",
    "open_frames",
    "read_image",
    "video_writer",
    "write_image",
    "write_video",
]
