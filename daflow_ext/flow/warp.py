"""Moves pictures and flows along a flow."""

from typing import Literal, overload

import torch

from ..ops import bilinear_sample


def pixel_grid(height: int, width: int, device: torch.device | str | None = None) -> torch.Tensor:
    """The position of every pixel: [2, H, W] float32, channel 0 = x, channel 1 = y."""
    y, x = torch.meshgrid(
        torch.arange(height, dtype=torch.float32, device=device),
        torch.arange(width, dtype=torch.float32, device=device),
        indexing="ij",
    )
    return torch.stack([x, y])


def check_flow(what: str, name: str, flow: torch.Tensor) -> None:
    """Raise ValueError unless ``flow`` is floating point [2, H, W] or [B, 2, H, W]."""
    if flow.dim() not in (3, 4) or flow.shape[-3] != 2 or not flow.is_floating_point():
        raise ValueError(f"{what}: {name} must be floating point [(B,) 2, H, W], got {flow.dtype} {tuple(flow.shape)}")


@overload
def warp(
    image2: torch.Tensor,
    flow: torch.Tensor,
    *,
    padding: str = "zeros",
    mask: Literal[False] = False,
    backend: str = "auto",
) -> torch.Tensor: ...


@overload
def warp(
    image2: torch.Tensor, flow: torch.Tensor, *, padding: str = "zeros", mask: Literal[True], backend: str = "auto"
) -> tuple[torch.Tensor, torch.Tensor]: ...


def warp(
    image2: torch.Tensor, flow: torch.Tensor, *, padding: str = "zeros", mask: bool = False, backend: str = "auto"
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Backward warping: out(p) = image2(p + flow(p)); with the flow from image1 to image2, ``out`` looks like image1.

    Bilinear; positions outside image2 read zero (``padding="zeros"``) or its edge (``"border"``), NaN flow reads zero.
    To move image1 *forward* onto image2, estimate the flow from image2 to image1 and call
    ``warp(image1, flow_backward)``; pushing pixels along the forward flow instead leaves holes and collisions (for flow
    itself: :func:`forward_interpolate`).

    Shapes:
        image2: [C, H, W] or [B, C, H, W], uint8 or floating; flow: [2, H, W] or [B, 2, H, W]. Returns the shape and
        dtype of image2, uint8 as float32; with ``mask=True`` also bool [H, W] or [B, H, W], True where p + flow(p) lies
        inside image2.
    Units: flow in pixels of image2.
    Gradients: image2 and flow.
    Raises:
        ValueError: shapes that do not fit.
    Equivalent to: ``bilinear_sample(image2, pixel_grid(H, W) + flow)``.
    """
    check_flow("warp", "flow", flow)
    if image2.dim() != flow.dim() or image2.shape[-2:] != flow.shape[-2:] or image2.shape[:-3] != flow.shape[:-3]:
        raise ValueError(
            f"warp: image2 [(B,) C, H, W] and flow [(B,) 2, H, W] must agree, got {tuple(image2.shape)} "
            f"and {tuple(flow.shape)}"
        )
    batched = image2.dim() == 4
    feat = image2 if image2.is_floating_point() else image2.float()
    feat, flow = (feat, flow) if batched else (feat[None], flow[None])
    height, width = flow.shape[-2:]
    coords = pixel_grid(height, width, flow.device) + flow.float()
    out = bilinear_sample(feat, coords, padding=padding, mask=mask, backend=backend)
    if not mask:
        return out if batched else out[0]
    out, inside = out[0], out[1][:, 0]
    return (out, inside) if batched else (out[0], inside[0])


def forward_interpolate(flow: torch.Tensor) -> torch.Tensor:
    """A flow carried along itself: the guess for the next pair of a video (warm start).

    Every vector is moved to where it points, p + flow(p); each pixel of the result takes the vector that landed nearest
    to it. Vectors that leave the image, or are not finite, are dropped; where nothing landed at all the result is zero.
    Of several vectors landing on one pixel the nearest to its centre stays.

    Shapes: [2, H, W] or [B, 2, H, W] -> the same.
    Units: pixels of this grid.
    Source: the warm start of RAFT (Teed & Deng 2020), here by splatting and jump flooding (Rong & Tan 2006), whose
        nearest neighbour is the true one up to rare ties of Voronoi borders.
    """
    check_flow("forward_interpolate", "flow", flow)
    batched = flow if flow.dim() == 4 else flow[None]
    height, width = batched.shape[-2:]
    landing = (pixel_grid(height, width, flow.device) + batched.float()).flatten(2)  # [B, 2, N]
    owner = _splat(landing, height, width)  # [B, H, W], index of the source pixel or -1
    owner = _flood(owner, landing).flatten(1)
    moved = batched.flatten(2).gather(2, owner.clamp(min=0)[:, None].expand(-1, 2, -1))
    moved = torch.where(owner[:, None] >= 0, moved, 0)
    return moved.reshape(flow.shape)


def _splat(landing: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """For every pixel the index of the point that landed on it, nearest to its centre (then lowest index), or -1."""
    batch, _, count = landing.shape
    cell = landing.round()
    inside = landing.isfinite().all(1)
    for axis, size in ((0, width), (1, height)):
        inside = inside & (cell[:, axis] >= 0) & (cell[:, axis] < size)
    spare = height * width  # one cell more for all that left the image
    target = torch.where(inside, cell[:, 1] * width + cell[:, 0], spare).long()
    offset = torch.where(inside, (landing - cell).square().sum(1), torch.inf)
    nearest = offset.new_full((batch, spare + 1), torch.inf).scatter_reduce(1, target, offset, "amin")
    index = torch.arange(count, device=landing.device).expand(batch, -1)
    index = torch.where(offset == nearest.gather(1, target), index, count)
    owner = index.new_full((batch, spare + 1), count).scatter_reduce(1, target, index, "amin")[:, :spare]
    return torch.where(owner < count, owner, -1).reshape(batch, height, width)


def _flood(owner: torch.Tensor, landing: torch.Tensor) -> torch.Tensor:
    """Every pixel's nearest landed point: each looks at neighbours at halving distances and takes over a nearer one."""
    height, width = owner.shape[-2:]
    grid = pixel_grid(height, width, owner.device)

    def distance(candidate: torch.Tensor) -> torch.Tensor:
        points = landing.gather(2, candidate.flatten(1).clamp(min=0)[:, None].expand(-1, 2, -1))
        squared = (points.reshape(-1, 2, height, width) - grid).square().sum(1)
        return torch.where(candidate >= 0, squared, torch.inf)

    best = distance(owner)
    step = 1 << max(height - 1, width - 1, 1).bit_length() - 1
    while step:
        seen = torch.nn.functional.pad(owner, (step, step, step, step), value=-1)
        for dy in (0, step, 2 * step):
            for dx in (0, step, 2 * step):
                candidate = seen[:, dy : dy + height, dx : dx + width]
                squared = distance(candidate)
                nearer = squared < best
                owner, best = torch.where(nearer, candidate, owner), torch.where(nearer, squared, best)
        step //= 2
    return owner
