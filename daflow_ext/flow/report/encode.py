"""How pictures, flow and maps are stored in a page; decode.js undoes it."""

import base64
import zlib

import cv2
import numpy as np
import torch

from ..formats import known_vectors

UNIT = 1 / 32
"""Pixels: flow is rounded to multiples of this, or of the next power of two that lets 16 bits hold it."""

UNKNOWN = -32768
"""Both components of an unknown vector."""

_LARGEST = 32767
_QUALITY = 88


def encode_picture(image: torch.Tensor, side: int) -> str:
    """A picture as a JPEG data URI, made smaller where it is longer than ``side`` pixels.

    Shapes: uint8 [3, H, W].
    """
    height, width = image.shape[1:]
    pixels = np.ascontiguousarray(image.cpu().permute(1, 2, 0).numpy()[:, :, ::-1])
    factor = side / max(height, width)
    if factor < 1:
        size = (max(1, round(width * factor)), max(1, round(height * factor)))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    _, content = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    return f"data:image/jpeg;base64,{_base64(content.tobytes())}"


def stride_for(height: int, width: int, side: int) -> int:
    """Every which pixel is stored, so that the longer side has at most ``side`` of them."""
    return -(-max(height, width) // side)


def stored_positions(length: int, stride: int) -> torch.Tensor:
    """The stored pixels of an axis: the middle of every cell of ``stride`` pixels."""
    return (torch.arange(0, length, stride) + stride // 2).clamp(max=length - 1)


def encode_flow(flow: torch.Tensor, stride: int) -> dict[str, object]:
    """Vectors of the stored pixels, rounded to ``unit``: int16, differences along rows, zigzag, low bytes before high
    bytes, zlib.

    Shapes: [2, H, W]. A vector that is unknown stays unknown.
    """
    small = _sampled(flow.detach().float().cpu(), stride)
    known = known_vectors(small)
    vectors = torch.where(known, small, 0.0).double().numpy()
    unit, longest = UNIT, float(np.abs(vectors).max(initial=0.0))
    while longest / unit > _LARGEST:
        unit *= 2
    values = np.rint(vectors / unit).astype(np.int16)
    values[:, ~known.numpy()] = UNKNOWN
    steps = np.diff(values, axis=2, prepend=np.int16(0))  # wraps around in 16 bits, as the sum in the page does
    zigzag = (steps << 1).view(np.uint16) ^ (steps >> 15).view(np.uint16)  # small steps of either sign: high byte 0
    planes = np.stack([zigzag & 255, zigzag >> 8]).astype(np.uint8)
    return _code(planes, values.shape, stride) | {"unit": unit}


def encode_map(values: torch.Tensor, stride: int) -> dict[str, object]:
    """A map in [0, 1] (or bool) at the stored pixels, in 255 levels: differences along rows, zlib.

    Shapes: [H, W].
    """
    small = _sampled(values.detach().float().cpu()[None], stride)[0].nan_to_num(0.0).clamp(0, 1)
    levels = (small * 255).round().byte().numpy()
    return _code(np.diff(levels, axis=1, prepend=np.uint8(0)), levels.shape, stride) | {
        "mask": values.dtype == torch.bool
    }


def encode_colors(colors: torch.Tensor) -> str:
    """A list of colours [N, 3] in 0..255 as base64 bytes."""
    return _base64(colors.byte().numpy().tobytes())


def _sampled(values: torch.Tensor, stride: int) -> torch.Tensor:
    rows, columns = (stored_positions(length, stride) for length in values.shape[-2:])
    return values[:, rows][:, :, columns]


def _code(data: np.ndarray, shape: tuple[int, ...], stride: int) -> dict[str, object]:
    packed = zlib.compress(np.ascontiguousarray(data).tobytes(), 7)
    return {"width": shape[-1], "height": shape[-2], "stride": stride, "data": _base64(packed)}


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
