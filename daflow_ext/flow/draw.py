"""Flow, occlusion, confidence and error as pictures. A picture is uint8 RGB [3, H, W]."""

import math
from collections.abc import Sequence

import cv2
import numpy as np
import torch

from .formats import known_vectors
from .metrics.errors import pixel_errors
from .warp import check_flow

Color = tuple[int, int, int]

ARROW: Color = (255, 221, 51)
OCCLUDED: Color = (255, 0, 160)
UNSURE: Color = (255, 96, 0)
UNKNOWN: Color = (128, 128, 128)

_SHIFT = 4  # OpenCV draws at 1/16 pixel
_STRIP = 22  # height of a caption


def arrows(
    image: torch.Tensor,
    flow: torch.Tensor,
    *,
    spacing: int = 16,
    scale: float = 1.0,
    color: Color = ARROW,
    thickness: int = 1,
) -> torch.Tensor:
    """A picture with the flow as arrows, each from a pixel p to p + scale * flow(p); with scale 1 its tip is where
    that pixel goes.

    Arrows stand on the pixels spacing // 2 + i * spacing of both axes; none where the flow is unknown.

    Shapes: image uint8 [3, H, W], flow [2, H, W] -> uint8 [3, H, W].
    Units: pixels.
    Raises:
        ValueError: shapes that do not fit, a spacing or thickness below 1.
    """
    check_picture("arrows", image, flow)
    if spacing < 1 or thickness < 1:
        raise ValueError(f"arrows: spacing and thickness must be at least 1 pixel, got {spacing} and {thickness}")
    canvas = _to_canvas(image)
    height, width = image.shape[1:]
    rows, columns = (np.arange(spacing // 2, side, spacing) for side in (height, width))
    standing = flow.detach().float().cpu()[:, rows][:, :, columns]
    known = known_vectors(standing).numpy()
    limit = 4.0 * max(height, width)  # farther tips lie outside anyway, and OpenCV counts in 32 bits
    vectors = (scale * torch.where(torch.from_numpy(known), standing, 0.0)).clamp(-limit, limit).numpy()
    ends = []
    for i, y in enumerate(rows):
        for j, x in enumerate(columns):
            if known[i, j]:
                ends.append(((float(x), float(y)), (x + float(vectors[0, i, j]), y + float(vectors[1, i, j]))))
    # a dark rim first, so that arrows show on any ground
    for line, ink in ((thickness + 2, (0, 0, 0)), (thickness, color)):
        for start, tip in ends:
            _arrow(canvas, start, tip, ink, line, 6.0 * thickness)
    return _to_picture(canvas)


def _arrow(canvas: np.ndarray, start: tuple, tip: tuple, color: Color, thickness: int, longest_head: float) -> None:
    """A dot, a line and a head; only the dot for less than half a pixel."""

    def fixed(point: tuple) -> tuple:
        return tuple(round(value * 2**_SHIFT) for value in point)

    cv2.circle(canvas, fixed(start), (thickness + 1) * 2**_SHIFT // 2, color, -1, cv2.LINE_AA, _SHIFT)
    length = math.dist(start, tip)
    if length < 0.5:
        return
    head, angle = min(longest_head, max(2.0, 0.35 * length)), math.atan2(start[1] - tip[1], start[0] - tip[0])
    barbs = [(tip[0] + head * math.cos(angle + turn), tip[1] + head * math.sin(angle + turn)) for turn in (-0.5, 0.5)]
    for end in (start, *barbs):
        cv2.line(canvas, fixed(tip), fixed(end), color, thickness, cv2.LINE_AA, _SHIFT)


def overlay(image: torch.Tensor, weight: torch.Tensor, color: Color) -> torch.Tensor:
    """A picture under a colour: round((1 - w) * image + w * color) at every pixel; NaN counts as 0.

    Shapes: image uint8 [3, H, W], weight floating point [H, W] in [0, 1] -> uint8 [3, H, W].
    Raises:
        ValueError: shapes that do not fit.
    """
    check_picture("overlay", image)
    if weight.shape != image.shape[1:] or not weight.is_floating_point():
        raise ValueError(
            f"overlay: weight must be floating point {list(image.shape[1:])}, got {weight.dtype} {list(weight.shape)}"
        )
    weight = weight.float().nan_to_num(0.0).clamp(0, 1)
    ink = torch.tensor(color, dtype=torch.float32, device=image.device)[:, None, None]
    return (image + weight * (ink - image)).round().to(torch.uint8)


def occlusion_overlay(
    image: torch.Tensor, occluded: torch.Tensor, *, color: Color = OCCLUDED, alpha: float = 0.6
) -> torch.Tensor:
    """A picture whose occluded pixels carry ``alpha`` of a colour.

    Shapes: image uint8 [3, H, W], occluded bool [H, W] -> uint8 [3, H, W].
    Raises:
        ValueError: shapes that do not fit.
    """
    return overlay(image, alpha * occluded.float(), color)


def confidence_overlay(
    image: torch.Tensor, confidence: torch.Tensor, *, color: Color = UNSURE, alpha: float = 0.8
) -> torch.Tensor:
    """A picture that carries alpha * (1 - confidence) of a colour: untouched where the flow is sure.

    Shapes: image uint8 [3, H, W], confidence floating point [H, W] in [0, 1] -> uint8 [3, H, W].
    Raises:
        ValueError: shapes that do not fit.
    """
    return overlay(image, alpha * (1 - confidence.float()), color)


def error_to_image(error: torch.Tensor, max_error: float = 10.0) -> torch.Tensor:
    """An error as colours: black = 0, through red to yellow = ``max_error`` pixels and more, grey = NaN.

    Shapes: error floating point [H, W] -> uint8 [3, H, W].
    Raises:
        ValueError: another shape, or a ``max_error`` that is not positive.
    """
    if error.dim() != 2 or not error.is_floating_point():
        raise ValueError(f"error_to_image: error must be floating point [H, W], got {error.dtype} {list(error.shape)}")
    if not 0 < max_error < math.inf:
        raise ValueError(f"error_to_image: max_error must be a positive number of pixels, got {max_error}")
    unknown = error.isnan()
    level = (error.float() / max_error * 255).nan_to_num(0.0).clamp(0, 255).byte().long().cpu()
    colors = error_ramp()[level]
    colors[unknown.cpu()] = torch.tensor(UNKNOWN, dtype=torch.uint8)
    return colors.permute(2, 0, 1).contiguous()


def error_ramp() -> torch.Tensor:
    """The 256 colours of :func:`error_to_image`, uint8 [256, 3]: "inferno"."""
    return _ramp(cv2.COLORMAP_INFERNO)


def value_ramp() -> torch.Tensor:
    """256 colours for any other number, uint8 [256, 3]: "viridis", dark violet = low, yellow = high."""
    return _ramp(cv2.COLORMAP_VIRIDIS)


def _ramp(name: int) -> torch.Tensor:
    levels = np.arange(256, dtype=np.uint8)[:, None]
    return torch.from_numpy(cv2.applyColorMap(levels, name)[:, 0, ::-1].copy())


def error_map(
    flow: torch.Tensor, truth: torch.Tensor, valid: torch.Tensor | None = None, *, max_error: float = 10.0
) -> torch.Tensor:
    """The end-point error |flow - truth| as a picture, see :func:`error_to_image`; grey where the truth is unknown.

    Shapes: both [2, H, W], valid bool [H, W] (default: where the truth is finite) -> uint8 [3, H, W].
    Units: pixels.
    Raises:
        ValueError: shapes that do not fit, a flow that is not finite where the truth is known.
    """
    errors = pixel_errors(flow, truth, valid)
    return error_to_image(torch.where(errors.valid, errors.epe, torch.nan), max_error)


def side_by_side(
    pictures: Sequence[torch.Tensor], captions: Sequence[str] = (), *, columns: int | None = None
) -> torch.Tensor:
    """Pictures of one size in rows, from left to right, each below its caption if there are captions.

    Args:
        columns: pictures per row; default: up to three in one row, then as square as it gets.
    Shapes: uint8 [3, H, W] each -> uint8 [3, rows * (H + 22), columns * W], without the 22 where no captions are given;
        an unfilled place is black.
    Raises:
        ValueError: no picture, pictures of several sizes, another number of captions.
    """
    if not pictures or len(captions) not in (0, len(pictures)):
        raise ValueError(f"side_by_side: got {len(pictures)} pictures and {len(captions)} captions")
    for picture in pictures:
        check_picture("side_by_side", picture)
        if picture.shape != pictures[0].shape:
            raise ValueError(f"side_by_side: pictures differ: {list(picture.shape)}, {list(pictures[0].shape)}")
    if columns is None:
        columns = len(pictures) if len(pictures) <= 3 else math.ceil(math.sqrt(len(pictures)))
    tiles = list(pictures)
    if captions:
        tiles = [
            torch.cat([_caption(text, tile.shape[2]), tile], 1) for text, tile in zip(captions, tiles, strict=True)
        ]
    tiles += [torch.zeros_like(tiles[0])] * (-len(tiles) % columns)
    rows = [torch.cat(tiles[start : start + columns], 2) for start in range(0, len(tiles), columns)]
    return torch.cat(rows, 1)


def _caption(text: str, width: int) -> torch.Tensor:
    strip = np.full((_STRIP, width, 3), 24, np.uint8)
    size = 0.45
    needed = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, 1)[0][0]
    size *= min(1.0, max(width - 10, 1) / needed)
    cv2.putText(strip, text, (5, 15), cv2.FONT_HERSHEY_SIMPLEX, size, (235, 235, 235), 1, cv2.LINE_AA)
    return _to_picture(strip)


def line_thickness(size: Sequence[int]) -> int:
    """Of lines that show on a picture of this size."""
    return max(1, max(size) // 900)


def check_picture(what: str, image: torch.Tensor, flow: torch.Tensor | None = None) -> None:
    """Raise ValueError unless ``image`` is uint8 [3, H, W], and ``flow``, if given, [2, H, W] of the same size."""
    if image.dtype != torch.uint8 or image.dim() != 3 or image.shape[0] != 3:
        raise ValueError(f"{what}: a picture must be uint8 [3, H, W], got {image.dtype} {list(image.shape)}")
    if flow is not None:
        check_flow(what, "flow", flow)
        if flow.shape[1:] != image.shape[1:] or flow.dim() != 3:
            raise ValueError(f"{what}: a flow {list(flow.shape)} does not fit a picture {list(image.shape)}")


def _to_canvas(image: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(image.cpu().permute(1, 2, 0).numpy())


def _to_picture(canvas: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(canvas).permute(2, 0, 1).contiguous()
