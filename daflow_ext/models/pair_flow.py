"""What every way along a video gives: the flow of one pair of neighbouring frames."""

from dataclasses import dataclass

import torch


@dataclass
class PairFlow:
    """One pair of neighbouring frames and its flow, on the CPU.

    Shapes:
        image1, image2: [3, H, W] as they came. forward: float32 [2, H, W], from image1 to image2. backward: [2, H, W]
        from image2 to image1; occluded: bool [H, W], pixels of image1 that image2 does not show; confidence: float32
        [H, W] in [0, 1], below 1/e where occluded; these three None unless asked for.
        warm: with a warm start, what the next pair begins at: "forward" (and "backward") [1, 2, H', W'] on the 1/8 grid
        of the padded frames.
    Units: pixels of the frames, x to the right, y down.
    """

    index: int
    image1: torch.Tensor
    image2: torch.Tensor
    forward: torch.Tensor
    backward: torch.Tensor | None
    occluded: torch.Tensor | None
    confidence: torch.Tensor | None
    seconds: float
    warm: dict[str, torch.Tensor] | None = None
