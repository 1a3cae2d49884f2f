"""Reads images and folders of images; one entry, :func:`open_frames`, for everything that holds frames."""

import contextlib
import os
import pathlib
import re
import struct
from collections.abc import Iterator, Sequence
from typing import Protocol

import cv2
import numpy as np
import torch

from ._files import atomic_path, existing_file
from .video import Video

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp")

DEFLATE_RATIO = 1032  # zlib cannot compress further, so a header that claims more than this is wrong
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type

PathLike = str | os.PathLike


def decode_image(path: PathLike, flags: int) -> np.ndarray:
    """The array OpenCV makes of an image file, or one sentence that names the file.

    Truncated PNG and JPEG files are refused here, because some decoders fill the missing part with grey; so are PNG
    files that claim more pixels than their bytes can hold.

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated, or nothing OpenCV can decode.
    """
    path = existing_file(path)
    data = path.read_bytes()
    if data.startswith(b"\x89PNG"):
        _check_png(path, data)
    # the end mark must follow the last scan: an embedded thumbnail has its own, before it
    if data.startswith(b"\xff\xd8") and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
        raise ValueError(f"{path} is truncated: its {len(data)} bytes lack the JPEG end mark")
    try:
        with _silent_opencv():
            image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    except cv2.error:
        image = None
    if image is None:
        raise ValueError(f"{path} is no complete image ({len(data)} bytes that cannot be decoded)")
    return image


def _check_png(path: PathLike, data: bytes) -> None:
    """Refuse what would make the decoder ask for more memory than the file can fill."""
    if len(data) >= 26:
        width, height, depth, kind = struct.unpack(">IIBB", data[16:26])
        if width * height * depth * _PNG_CHANNELS.get(kind, 1) > 8 * DEFLATE_RATIO * len(data):
            raise ValueError(f"{path} is truncated: its header says {width}x{height}, but it has {len(data)} bytes")
    place, name = 8, b""
    while name != b"IEND":  # length, name, content, checksum
        name = data[place + 4 : place + 8]
        place += 12 + int.from_bytes(data[place : place + 4], "big")
        if place > len(data):
            raise ValueError(f"{path} is truncated: its {len(data)} bytes lack the PNG end mark")


def read_image(path: PathLike) -> torch.Tensor:
    """An image file as RGB.

    Grey images get three equal channels, alpha is dropped (the stored colours stay), 16 bits are rounded to 8, an EXIF
    orientation is applied.

    Shapes: uint8 [3, H, W].
    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated, no image, or floating-point pixels.
    """
    image = decode_image(path, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    if image.dtype == np.uint16:
        image = ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if image.dtype != np.uint8:
        raise ValueError(f"{path} has {image.dtype} pixels; an image of 8 or 16 bits per channel was expected")
    return torch.from_numpy(np.ascontiguousarray(image[:, :, ::-1].transpose(2, 0, 1)))


def write_image(path: PathLike, image: torch.Tensor) -> None:
    """Write an RGB (or one-channel) image; the suffix chooses the format, the file appears whole or not at all.

    Shapes: uint8 [3, H, W] or [1, H, W].
    Raises:
        ValueError: another shape or dtype, a suffix OpenCV cannot write, an image that the format cannot hold, or a
            folder that does not exist.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(encode_image(image, pathlib.Path(path).suffix))


def encode_image(image: torch.Tensor, suffix: str) -> bytes:
    """The bytes of an image file of the kind ``suffix`` (".png", ".jpg", ...); otherwise as :func:`write_image`."""
    if image.dtype != torch.uint8 or image.dim() != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"an image must be uint8 [3, H, W] or [1, H, W], got {image.dtype} {tuple(image.shape)}")
    if suffix.lower() not in IMAGE_SUFFIXES:
        raise ValueError(f"cannot write an image as {suffix!r}; expected one of {', '.join(IMAGE_SUFFIXES)}")
    pixels = np.ascontiguousarray(image.cpu().numpy().transpose(1, 2, 0)[:, :, ::-1])
    try:
        with _silent_opencv():
            done, content = cv2.imencode(suffix, pixels)
    except cv2.error:
        done = False
    if not done:  # a side beyond the format's limit, or .ppm / .pgm with the other number of channels
        raise ValueError(f"cannot write an image {tuple(image.shape)} as {suffix!r}: the format does not hold it")
    return content.tobytes()


@contextlib.contextmanager
def _silent_opencv() -> Iterator[None]:
    """OpenCV would print its own lines on stderr."""
    log = cv2.utils.logging
    level = log.setLogLevel(log.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        log.setLogLevel(level)


def _natural_key(path: pathlib.Path) -> tuple:
    """Sorts frame2 before frame10."""
    parts = re.split(r"([0-9]+)", path.name.lower())
    return [(int(part), "") if index % 2 else (-1, part) for index, part in enumerate(parts)], path.name


class ImageSequence:
    """Image files as frames, read one at a time.

    Attributes:
        source: what error messages call it. length: number of frames. paths: their files.
    Yields uint8 [3, H, W]; a frame whose size differs from the first raises ValueError naming the file.
    """

    def __init__(self, paths: Sequence[PathLike], source: str):
        self.paths = [existing_file(path) for path in paths]
        self.source = source
        self.length = len(self.paths)
        stems = [path.stem for path in self.paths[:-1]]  # the last frame starts no pair
        self._distinct = len(set(stems)) == len(stems)

    def name(self, index: int) -> str:
        """The name that files made from frame ``index`` get: its stem, or the whole name where stems repeat."""
        return self.paths[index].stem if self._distinct else self.paths[index].name

    def __iter__(self) -> Iterator[torch.Tensor]:
        first = None
        for path in self.paths:
            image = read_image(path)
            first = image.shape if first is None else first
            if image.shape != first:
                raise ValueError(
                    f"{path} is {image.shape[2]}x{image.shape[1]} pixels, but {self.paths[0]} is "
                    f"{first[2]}x{first[1]}; all frames must have one size"
                )
            yield image


def _open_folder(folder: pathlib.Path) -> ImageSequence:
    files = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() and not path.name.startswith(".")
    ]
    if len(files) < 2:
        found = f"one image ({files[0].name})" if files else "no image"
        raise ValueError(
            f"the folder {folder} holds {found}, optical flow needs at least two frames ({' '.join(IMAGE_SUFFIXES)})"
        )
    files.sort(key=_natural_key)
    return ImageSequence(files, str(folder))


class Frames(Protocol):
    """Frames of one size, read one at a time, as often as wanted: iterated for uint8 [3, H, W] RGB.

    Attributes:
        source: what messages call them. paths: the files they are in, if any. length: for a video what its
        header says; None if it says nothing.
    """

    source: str
    paths: list[pathlib.Path]

    @property
    def length(self) -> int | None: ...

    def name(self, index: int) -> str:
        """The name that files made from frame ``index`` get."""

    def __iter__(self) -> Iterator[torch.Tensor]: ...


def open_frames(*paths: PathLike) -> Frames:
    """Frames from two or more image files, a folder of images (in natural order) or a video file.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: fewer than two frames, or a file that is neither image nor video. While iterating: a frame that
            cannot be read or differs in size, a video that ends early.
    """
    if not paths:
        raise ValueError("open_frames needs two image files, a folder or a video")
    if len(paths) > 1:
        return ImageSequence(paths, f"{paths[0]} .. {paths[-1]}")
    path = pathlib.Path(paths[0])
    if path.is_dir():
        return _open_folder(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; two image files, a folder or a video were expected")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        raise ValueError(f"{path} is one image, optical flow needs two: give a second image, a folder or a video")
    return Video(path)
