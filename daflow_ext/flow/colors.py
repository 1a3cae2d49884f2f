"""Flow as colours: the Middlebury wheel, hue = direction, saturation = length."""

import functools
import math
from collections.abc import Iterable

import torch

from .formats import known_vectors

_SECTORS = (15, 6, 4, 11, 13, 6)  # steps red-yellow, yellow-green, green-cyan, cyan-blue, blue-magenta, magenta-red
_CORNERS = ((1, 0, 0), (1, 1, 0), (0, 1, 0), (0, 1, 1), (0, 0, 1), (1, 0, 1))


@functools.cache
def color_wheel() -> torch.Tensor:
    """The 55 fully saturated colours, [55, 3] float32 in [0, 255], counted from "right" (red) over "down" (yellow)."""
    rows = []
    for index, steps in enumerate(_SECTORS):
        start = torch.tensor(_CORNERS[index], dtype=torch.float32)
        end = torch.tensor(_CORNERS[(index + 1) % len(_CORNERS)], dtype=torch.float32)
        ramp = torch.floor(255 * torch.arange(steps, dtype=torch.float32) / steps)[:, None]  # as the original rounds
        rows.append(255 * start + (end - start) * ramp)
    return torch.cat(rows)


def flow_to_image(flow: torch.Tensor, max_flow: float | None = None) -> torch.Tensor:
    """Colours of a flow: white = no motion, full colour = ``max_flow`` pixels, darker = beyond, black = unknown.

    Red points right, yellow down, cyan left, blue-violet up. Give ``max_flow`` when several images must be comparable;
    None takes the longest known vector of this call (of the whole batch).

    Shapes: flow [2, H, W] or [B, 2, H, W] -> uint8 RGB [3, H, W] or [B, 3, H, W].
    Raises:
        ValueError: another shape, or a ``max_flow`` that is not positive and finite.
    Source: Baker et al., A Database and Evaluation Methodology for Optical Flow (2007); the wheel after Scott Tumlin.
    """
    if flow.dim() not in (3, 4) or flow.shape[-3] != 2 or not flow.is_floating_point():
        raise ValueError(
            f"flow_to_image: flow must be floating point [(B,) 2, H, W], got {flow.dtype} {tuple(flow.shape)}"
        )
    if max_flow is not None and not (max_flow > 0 and math.isfinite(max_flow)):
        raise ValueError(f"flow_to_image: max_flow must be a positive number of pixels, got {max_flow}")
    flow = flow.detach().float()
    known = known_vectors(flow).unsqueeze(-3)  # [..., 1, H, W]
    x, y = torch.where(known, flow, 0).split(1, dim=-3)
    length = torch.hypot(x, y)
    if max_flow is None:
        max_flow = length.max().item() if length.numel() else 0.0
    length = length / max_flow if max_flow > 0 else length
    wheel = color_wheel().to(flow.device)
    position = (torch.atan2(-y, -x) / math.pi + 1) / 2 * (len(wheel) - 1)
    lower = position.floor().long().clamp(0, len(wheel) - 1)
    hue = torch.lerp(wheel[lower], wheel[(lower + 1) % len(wheel)], (position - lower)[..., None]) / 255
    hue = hue.squeeze(-4).movedim(-1, -3)  # [..., 3, H, W]
    color = torch.where(length <= 1, 1 - length * (1 - hue), 0.75 * hue)
    return torch.floor(255 * color * known).to(torch.uint8)


def length_quantile(flow: torch.Tensor, share: float = 0.99) -> float:
    """The length that ``share`` of the known vectors of a flow do not exceed; 0 if none is known.

    Shapes: flow [..., 2, H, W].
    Units: pixels.
    """
    known = known_vectors(flow)
    lengths = torch.linalg.vector_norm(flow.detach().float(), dim=-3)[known]
    if not lengths.numel():
        return 0.0
    return lengths.kthvalue(max(1, round(share * lengths.numel()))).values.item()


def flow_scale(flows: Iterable[torch.Tensor], share: float = 0.99) -> float:
    """A ``max_flow`` for a whole clip: the largest :func:`length_quantile` of its flows, at least one pixel.

    A quantile and not the maximum, so that a few wild vectors do not pale all others; at least a pixel, so that the
    noise of a scene at rest stays white.

    Shapes: flows [2, H, W], taken one at a time.
    Units: pixels.
    """
    return max([1.0, *(length_quantile(flow, share) for flow in flows)])


def wheel_legend(side: int = 121) -> torch.Tensor:
    """The wheel as a picture: the colour of every vector from none (centre) to full length (rim), white around it.

    Shapes: uint8 RGB [3, side, side].
    """
    position = (torch.arange(side, dtype=torch.float32) - (side - 1) / 2) / (side / 2)
    y, x = torch.meshgrid(position, position, indexing="ij")
    vectors = torch.stack([x, y])
    return flow_to_image(torch.where((x.square() + y.square() <= 1), vectors, 0.0), max_flow=1.0)
