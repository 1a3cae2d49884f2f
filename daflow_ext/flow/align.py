"""Lays the frames of a clip onto one of them, with masks of what each of them shows of it."""

from dataclasses import dataclass

import torch

from .consistency import forward_backward_consistency
from .warp import check_flow, warp

_WHOLE = 1 - 1e-3
"""A bilinear weight that is 1 up to rounding: every pixel read is a visible one."""


@dataclass(frozen=True)
class Aligned:
    """A clip laid onto its frame ``reference``.

    Shapes:
        frames: float32 [F, C, H, W], zero where a frame was read outside; that of the reference is the reference.
        visible: bool [F, H, W], pixels of the reference that this frame shows too.
        flows: float32 [F, 2, H, W], from the reference to this frame.
    Units: pixels; colours as they came.
    """

    frames: torch.Tensor
    visible: torch.Tensor
    flows: torch.Tensor
    reference: int


def align(
    frames: torch.Tensor, forward: torch.Tensor, backward: torch.Tensor, reference: int = 0, *, backend: str = "auto"
) -> Aligned:
    """Warp every frame of a clip onto frame ``reference``.

    The flows of neighbours are chained, f(p) = f1(p) + f2(p + f1(p)). A pixel counts as visible in a frame when every
    link of its chain is: going there and back returns (see :func:`forward_backward_consistency`).

    Shapes:
        frames: [F, C, H, W], uint8 or floating. forward: [F-1, 2, H, W], from frame t to t + 1; backward: the same from
        t + 1 to t.
    Units: pixels.
    Gradients: frames and flows (of the frames returned).
    Raises:
        ValueError: shapes that do not fit, a reference outside the clip.
    """
    _check(frames, forward, backward, reference)
    whole = frames.new_ones(frames.shape[-2:], dtype=torch.bool)
    still = forward.new_zeros(2, *frames.shape[-2:], dtype=torch.float32)
    after = _chain(list(zip(forward[reference:], backward[reference:], strict=True)), backend)
    earlier = zip(backward[:reference].flip(0), forward[:reference].flip(0), strict=True)
    links = [*reversed(_chain(list(earlier), backend)), (still, whole), *after]
    flows, visible = (torch.stack(part) for part in zip(*links, strict=True))
    warped = warp(frames, flows, backend=backend)
    exact = [*warped[:reference], frames[reference].to(warped.dtype), *warped[reference + 1 :]]
    return Aligned(torch.stack(exact), visible, flows, reference)


def compose_flows(first: torch.Tensor, second: torch.Tensor, *, backend: str = "auto") -> torch.Tensor:
    """The flow from frame 1 to frame 3: first(p) + second(p + first(p)), with those from 1 to 2 and from 2 to 3.

    Beyond the image the second flow goes on as at its edge.

    Shapes: both [2, H, W] or [B, 2, H, W] -> the same.
    Units: pixels.
    Raises:
        ValueError: shapes that do not fit.
    """
    check_flow("compose_flows", "second", second)
    return first + warp(second, first, padding="border", backend=backend)


def _chain(pairs: list[tuple[torch.Tensor, torch.Tensor]], backend: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(flow, visible) from the reference to the first, second, ... frame away from it; pairs of there and back."""
    links: list[tuple[torch.Tensor, torch.Tensor]] = []
    for there, back in pairs:
        there, back = there.float(), back.float()
        shown = ~forward_backward_consistency(there, back, backend=backend)
        if links:
            flow, seen = links[-1]
            shown = seen & (warp(shown[None].float(), flow, backend=backend)[0] > _WHOLE)
            there = compose_flows(flow, there, backend=backend)
        links.append((there, shown))
    return links


def _check(frames: torch.Tensor, forward: torch.Tensor, backward: torch.Tensor, reference: int) -> None:
    if frames.dim() != 4 or len(frames) < 1:
        raise ValueError(f"align: frames must be [F, C, H, W], got {list(frames.shape)}")
    expected = [len(frames) - 1, 2, *frames.shape[-2:]]
    for name, flow in (("forward", forward), ("backward", backward)):
        if list(flow.shape) != expected or not flow.is_floating_point():
            raise ValueError(
                f"align: {len(frames)} frames need a floating-point {name} flow {expected}, one for each pair of "
                f"neighbours, got {flow.dtype} {list(flow.shape)}"
            )
    if not 0 <= reference < len(frames):
        raise ValueError(f"align: reference must be in 0..{len(frames) - 1}, got {reference}")
