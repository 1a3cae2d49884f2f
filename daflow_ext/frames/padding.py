"""Pads images to the sizes a network can take, and crops its output back."""

from collections.abc import Sequence
from typing import Any, overload

import torch

MODES = ("sintel", "kitti")


def _missing(size: int, multiple: int, minimum: int) -> int:
    """How many pixels a side lacks to be a multiple of ``multiple`` and at least ``minimum``."""
    target = max(size, minimum)
    return -(-target // multiple) * multiple - size


def _replicate(image: torch.Tensor, before: int, after: int, dim: int) -> torch.Tensor:
    """The edges repeated along ``dim``; unlike ``F.pad`` for every dtype (uint8 too) and rank."""
    parts = [image]
    if before:
        parts.insert(0, image.narrow(dim, 0, 1).expand(*_with_size(image, dim, before)))
    if after:
        parts.append(image.narrow(dim, image.shape[dim] - 1, 1).expand(*_with_size(image, dim, after)))
    return torch.cat(parts, dim) if len(parts) > 1 else image


def _with_size(image: torch.Tensor, dim: int, size: int) -> list[int]:
    shape = list(image.shape)
    shape[dim] = size
    return shape


class InputPadder:
    """Repeats the image edges until height and width are multiples of ``multiple``, the way RAFT's evaluation does.

    ``mode="sintel"`` spreads the padding evenly over both sides (the odd pixel goes right / to the bottom);
    ``mode="kitti"`` does so for the width and puts all of the height's at the bottom.

    Small images: ``minimum`` pads every side to at least that many pixels, for networks with a smallest size (RAFT: 16
    is enough). Under 64 pixels RAFT's coarsest correlation levels are empty and read as zeros; padding up to them does
    not make its flow better, so the default 0 leaves sizes to ``multiple`` alone, as RAFT does.

    Shapes:
        dims: any sequence whose last two numbers are H, W (``image.shape`` works).
        pad: tensors [..., H, W] of any dtype -> list of [..., H', W'].
        unpad: tensors [..., H', W'] -> [..., H, W]; one tensor for one argument, else a list. Flow keeps its values:
        padding moves no pixel's content.
    Raises:
        ValueError: unknown mode, empty sides, a tensor of another size than the padder was made for.
    Source: InputPadder of RAFT (core/utils/utils.py).
    """

    def __init__(self, dims: Sequence[int], mode: str = "sintel", multiple: int = 8, *, minimum: int = 0):
        if mode not in MODES:
            raise ValueError(f"InputPadder: mode must be one of {', '.join(MODES)}, got {mode!r}")
        if len(dims) < 2 or min(dims[-2:]) < 1:
            raise ValueError(f"InputPadder: dims must end in a height and a width of at least 1, got {tuple(dims)}")
        if multiple < 1:
            raise ValueError(f"InputPadder: multiple must be at least 1, got {multiple}")
        self.height, self.width = int(dims[-2]), int(dims[-1])
        rows = _missing(self.height, multiple, minimum)
        columns = _missing(self.width, multiple, minimum)
        self.left, self.right = columns // 2, columns - columns // 2
        self.top = rows // 2 if mode == "sintel" else 0
        self.bottom = rows - self.top

    def pad(self, *tensors: torch.Tensor) -> list[torch.Tensor]:
        """Each tensor with its edges repeated."""
        for tensor in tensors:
            self._check("pad", tensor, self.height, self.width)
        return [
            _replicate(_replicate(tensor, self.top, self.bottom, -2), self.left, self.right, -1) for tensor in tensors
        ]

    @overload
    def unpad(self, tensor: torch.Tensor, /) -> torch.Tensor: ...

    @overload
    def unpad(self, *tensors: torch.Tensor) -> Any: ...

    def unpad(self, *tensors: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """The inside of each tensor, as a view."""
        rows, columns = self.height + self.top + self.bottom, self.width + self.left + self.right
        for tensor in tensors:
            self._check("unpad", tensor, rows, columns)
        crops = [
            tensor[..., self.top : self.top + self.height, self.left : self.left + self.width] for tensor in tensors
        ]
        return crops[0] if len(crops) == 1 else crops

    @staticmethod
    def _check(what: str, tensor: torch.Tensor, height: int, width: int) -> None:
        if tensor.dim() < 2 or tuple(tensor.shape[-2:]) != (height, width):
            raise ValueError(f"InputPadder.{what}: expected [..., {height}, {width}], got {tuple(tensor.shape)}")
