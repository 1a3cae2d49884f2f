"""Sends frames through a video encoder in memory (PyAV / FFmpeg) and back."""

import dataclasses
import io
from collections.abc import Iterable, Iterator
from typing import Any

import cv2
import numpy as np

from .resample import resize

# RGB -> Y, Cb, Cr of BT.601 in video range (16..235, 16..240), the convention of H.264 and MPEG-4 files.
_KR, _KG, _KB = 0.299, 0.587, 0.114
_TO_YUV = np.array(
    [
        [219 / 255 * _KR, 219 / 255 * _KG, 219 / 255 * _KB],
        [-224 / 255 * _KR / (2 - 2 * _KB), -224 / 255 * _KG / (2 - 2 * _KB), 224 / 255 * 0.5],
        [224 / 255 * 0.5, -224 / 255 * _KG / (2 - 2 * _KR), -224 / 255 * _KB / (2 - 2 * _KR)],
    ]
)
_YUV_OFFSET = np.array([16.0, 128.0, 128.0])
_TO_YUV_AFFINE = np.column_stack([_TO_YUV, _YUV_OFFSET])
_TO_RGB = np.linalg.inv(_TO_YUV)
_TO_RGB_AFFINE = np.column_stack([_TO_RGB, -_TO_RGB @ _YUV_OFFSET])

MIN_BIT_RATE = 1000  # libx264 counts in kbit/s and refuses 0
# Without it, libx264's rate control uses approximate vector instructions, and some clips get other bits in other runs.
_X264_OPTIONS = {"x264-params": "cpu-independent=1"}


@dataclasses.dataclass
class Encoded:
    """What an encoding cost: filled in while frames pass. ``encoder``: what FFmpeg makes of the name ``codec``."""

    codec: str
    encoder: str = ""
    bit_rate: int = 0
    frames: int = 0
    size: tuple[int, int] = (0, 0)
    bytes: int = 0

    @property
    def bits_per_pixel(self) -> float:
        return 8 * self.bytes / max(self.frames * self.size[0] * self.size[1], 1)


def to_yuv420(frame: np.ndarray) -> np.ndarray:
    """uint8 RGB [H, W, 3], even sides -> planar uint8 [H * 3 / 2, W], chroma averaged over 2 x 2 pixels.

    Done here and not by the encoder's converter because chroma must sit in the middle of its four pixels, so that
    coloured edges stay where they are.
    """
    height, width = frame.shape[:2]
    yuv = cv2.transform(frame.astype(np.float32), _TO_YUV_AFFINE)
    chroma = cv2.resize(yuv[..., 1:], (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    planes = [yuv[..., 0].reshape(-1), chroma[..., 0].reshape(-1), chroma[..., 1].reshape(-1)]
    return np.rint(np.concatenate(planes)).astype(np.uint8).reshape(height * 3 // 2, width)


def from_yuv420(planes: np.ndarray) -> np.ndarray:
    """The inverse of :func:`to_yuv420`; chroma is interpolated bilinearly."""
    height, width = planes.shape[0] * 2 // 3, planes.shape[1]
    luma, flat = planes[:height], planes[height:].reshape(2, height // 2, width // 2)
    chroma = [cv2.resize(plane.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR) for plane in flat]
    rgb = cv2.transform(np.stack([luma.astype(np.float32), *chroma], axis=-1), _TO_RGB_AFFINE)
    return np.rint(np.clip(rgb, 0, 255)).astype(np.uint8)


def resolve_encoder(name: str) -> str:
    """The encoder that FFmpeg uses for ``name``; ValueError with the remedy where the installed PyAV has none."""
    import av

    try:
        return av.Codec(name, "w").name
    except ValueError:
        raise ValueError(
            f"the installed PyAV {av.__version__} has no video encoder {name!r}; install the `av` wheel from PyPI, "
            "or choose other codecs in the configuration (for example codecs=('mpeg4',))"
        ) from None


def _open_stream(container: Any, record: Encoded) -> Any:
    height, width = record.size
    options = _X264_OPTIONS if record.encoder == "libx264" else {}
    stream = container.add_stream(record.encoder, rate=1, options=options)
    stream.width, stream.height = width + width % 2, height + height % 2
    stream.pix_fmt, stream.bit_rate = "yuv420p", record.bit_rate
    _make_repeatable(stream)
    return stream


def _make_repeatable(stream: Any) -> None:
    from av.codec.context import Flags

    stream.thread_count = 1  # more threads would make other bits
    stream.codec_context.flags |= Flags.bitexact  # no transform that differs from processor to processor


def _encode(frames: Iterable[np.ndarray], bits: float, per_pixel: bool, record: Encoded) -> io.BytesIO:
    import av

    buffer, stream = io.BytesIO(), None
    with av.open(buffer, "w", format="mp4") as container:
        for frame in frames:
            if stream is None:
                record.size = frame.shape[:2]
                pixels = frame.shape[0] * frame.shape[1]
                record.bit_rate = max(round(bits * pixels if per_pixel else bits), MIN_BIT_RATE)
                stream = _open_stream(container, record)
            planes = to_yuv420(_fit(frame, record.size))
            for packet in stream.encode(av.VideoFrame.from_ndarray(planes, format="yuv420p")):
                record.bytes += packet.size
                container.mux(packet)
            record.frames += 1
        if stream is not None:
            for packet in stream.encode(None):
                record.bytes += packet.size
                container.mux(packet)
    buffer.seek(0)
    return buffer


def _fit(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The size of the clip's first frame, since a stream has one size, with the edges repeated to even sides."""
    if frame.shape[:2] != size:
        frame = np.rint(resize(frame.astype(np.float32), size, "bilinear")).astype(np.uint8)
    odd_rows, odd_columns = size[0] % 2, size[1] % 2
    if odd_rows or odd_columns:
        frame = cv2.copyMakeBorder(frame, 0, odd_rows, 0, odd_columns, cv2.BORDER_REPLICATE)
    return frame


def compress(frames: Iterable[np.ndarray], bits: float, per_pixel: bool, record: Encoded) -> Iterator[np.ndarray]:
    """Encode all frames as one stream of ``record.codec`` and yield them decoded.

    The stream is declared at 1 frame/s, so the bit rate is what a frame may cost. Frames of another size than the first
    are resized to it. Only the encoded bytes are held, not the frames.

    Shapes: uint8 RGB [H, W, 3].
    Raises:
        ValueError: no such encoder.
        RuntimeError: the encoder lost frames.
    """
    import av

    record.encoder = resolve_encoder(record.codec)
    buffer = _encode(frames, bits, per_pixel, record)
    if not record.frames:
        return
    height, width = record.size
    count = 0
    with av.open(buffer) as container:
        _make_repeatable(container.streams.video[0])
        for frame in container.decode(video=0):
            yield from_yuv420(frame.to_ndarray(format="yuv420p"))[:height, :width]
            count += 1
    if count != record.frames:
        raise RuntimeError(f"{record.codec} gave back {count} of {record.frames} frames at {width}x{height}")
