"""Takes the shake out of a clip: one similarity per frame, fitted to the flow, its path smoothed."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .warp import check_flow, pixel_grid, warp

_ROUNDS = 10
_NOISE = 0.1
"""Pixels: residuals of this length are never called outliers."""


@dataclass(frozen=True)
class Stabilized:
    """A steadier clip.

    Shapes:
        frames: float32 [F, C, H, W], zero where a frame was read outside. inside: bool [F, H, W], where it was not.
        path, smooth: float64 [F, 4], motion of the picture since the first frame, as it was and as it is now: shift of
        the centre in x and y (pixels), angle (radians, from x to y), logarithm of the size.
    """

    frames: torch.Tensor
    inside: torch.Tensor
    path: torch.Tensor
    smooth: torch.Tensor


def fit_similarity(flow: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
    """The shift, turn and change of size that a flow is nearest to, as [3, 3] float64 on pixel coordinates (x, y, 1).

    Reweighted least squares (Geman-McClure at three robust deviations): what moves on its own, as long as it is the
    smaller part of the picture, hardly counts.

    Shapes:
        flow: [2, H, W]; vectors that are not finite are left out. weight: [H, W], bool or numbers >= 0; None: all 1.
    Raises:
        ValueError: shapes that do not fit, fewer than two pixels that count.
    """
    check_flow("fit_similarity", "flow", flow)
    if flow.dim() != 3 or (weight is not None and weight.shape != flow.shape[1:]):
        came = None if weight is None else list(weight.shape)
        raise ValueError(f"fit_similarity: flow must be [2, H, W], weight [H, W], got {list(flow.shape)} and {came}")
    given = torch.ones_like(flow[0]) if weight is None else weight.to(flow.dtype)
    known = flow.isfinite().all(0) & (given > 0)
    if int(known.sum()) < 2:
        raise ValueError("fit_similarity: fewer than two pixels have a flow that counts")
    center = _center(flow)
    height, width = flow.shape[-2:]
    x, y = (pixel_grid(height, width, flow.device).double() - center[:, None, None])[:, known]
    u, v = flow[:, known].double()
    given, robust = given[known].double(), torch.ones_like(x)
    solution = torch.zeros(4, dtype=torch.float64, device=flow.device)
    for _ in range(_ROUNDS):
        solution = _solve(x, y, u, v, given * robust)
        a, b, tx, ty = solution
        squared = (a * x - b * y + tx - u).square() + (b * x + a * y + ty - v).square()
        deviation = max(3 * 1.4826 * squared.median().sqrt().item(), _NOISE)
        robust = (1 + squared / deviation**2) ** -2
    a, b, tx, ty = solution.tolist()
    turn = torch.tensor([[1 + a, -b, tx], [b, 1 + a, ty], [0, 0, 1]], dtype=torch.float64)
    return _shift(center.cpu()) @ turn @ _shift(-center.cpu())


def stabilize(
    frames: torch.Tensor, forward: torch.Tensor, weight: torch.Tensor | None = None, *, sigma: float = 8.0
) -> Stabilized:
    """Remove what is fast in the motion of the whole picture; a steady pan, turn or zoom stays.

    Each pair of frames gets one similarity (:func:`fit_similarity`); their chain is a path, which a Gaussian window
    smooths. No parallax, no rolling shutter, no filling in of borders.

    Shapes:
        frames: [F, C, H, W], uint8 or floating; forward: [F-1, 2, H, W], from frame t to t + 1; weight: [F-1, H, W].
    Args:
        sigma: frames; deviation of the window. 0 changes nothing.
    Raises:
        ValueError: shapes that do not fit.
    """
    if frames.dim() != 4 or list(forward.shape) != [len(frames) - 1, 2, *frames.shape[-2:]]:
        raise ValueError(
            f"stabilize: frames [F, C, H, W] need flow [F-1, 2, H, W], got {list(frames.shape)}, {list(forward.shape)}"
        )
    if not 0 <= sigma < math.inf:
        raise ValueError(f"stabilize: sigma must be a number of frames >= 0, got {sigma}")
    center = _center(frames).cpu()
    chain = [torch.eye(3, dtype=torch.float64)]
    for index, flow in enumerate(forward):
        chain.append(fit_similarity(flow, None if weight is None else weight[index]) @ chain[-1])
    path = _parameters(chain, center)
    smooth = _smoothed(path, sigma)
    height, width = frames.shape[-2:]
    grid = pixel_grid(height, width, frames.device)
    flows = []
    for original, steady in zip(chain, _matrices(smooth, center), strict=True):
        back = (original @ torch.linalg.inv(steady)).to(grid)
        flows.append(torch.einsum("ij,jhw->ihw", back[:2, :2], grid) + back[:2, 2, None, None] - grid)
    steadied, inside = warp(frames, torch.stack(flows), mask=True)
    return Stabilized(steadied, inside, path, smooth)


def _center(image: torch.Tensor) -> torch.Tensor:
    height, width = image.shape[-2:]
    return torch.tensor([(width - 1) / 2, (height - 1) / 2], dtype=torch.float64, device=image.device)


def _shift(by: torch.Tensor) -> torch.Tensor:
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[:2, 2] = by
    return matrix


def _solve(x: torch.Tensor, y: torch.Tensor, u: torch.Tensor, v: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """(a, b, tx, ty) of u = a x - b y + tx, v = b x + a y + ty: the normal equations of weighted least squares."""
    total, wx, wy = weight.sum(), (weight * x).sum(), (weight * y).sum()
    squared, zero = (weight * (x * x + y * y)).sum(), torch.zeros_like(total)
    matrix = torch.stack([squared, zero, wx, wy, zero, squared, -wy, wx, wx, -wy, total, zero, wy, wx, zero, total])
    right = torch.stack(
        [(weight * (x * u + y * v)).sum(), (weight * (x * v - y * u)).sum(), (weight * u).sum(), (weight * v).sum()]
    )
    return torch.linalg.lstsq(matrix.view(4, 4), right[:, None]).solution[:, 0]


def _parameters(chain: list[torch.Tensor], center: torch.Tensor) -> torch.Tensor:
    """Shift of the centre, angle and log size of each matrix, [F, 4]; angles go on beyond pi."""
    rows, angle = [], 0.0
    for matrix in chain:
        moved = matrix[:2, :2] @ center + matrix[:2, 2] - center
        turned = math.atan2(matrix[1, 0], matrix[0, 0])
        angle += (turned - angle + math.pi) % (2 * math.pi) - math.pi
        rows.append([*moved.tolist(), angle, math.log(math.hypot(matrix[0, 0], matrix[1, 0]))])
    return torch.tensor(rows, dtype=torch.float64)


def _matrices(path: torch.Tensor, center: torch.Tensor) -> list[torch.Tensor]:
    """The inverse of :func:`_parameters`."""
    matrices = []
    for x, y, angle, size in path.tolist():
        cos, sin = math.exp(size) * math.cos(angle), math.exp(size) * math.sin(angle)
        turn = torch.tensor([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]], dtype=torch.float64)
        matrices.append(_shift(center + torch.tensor([x, y], dtype=torch.float64)) @ turn @ _shift(-center))
    return matrices


def _smoothed(path: torch.Tensor, sigma: float) -> torch.Tensor:
    """The path under a Gaussian window; beyond the ends it is turned about them, so that straight paths stay."""
    radius = min(math.ceil(3 * sigma), len(path) - 1)
    if radius < 1:
        return path
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    window = torch.exp(-(offsets**2) / (2 * sigma**2))
    before, after = 2 * path[:1] - path[1 : radius + 1].flip(0), 2 * path[-1:] - path[-radius - 1 : -1].flip(0)
    padded = torch.cat([before, path, after]).T[:, None]  # [4, 1, F + 2 radius]
    return F.conv1d(padded, (window / window.sum())[None, None])[:, 0].T
