"""spatial-correlation-sampler (ClementPinard/Pytorch-Correlation-extension), used by PWC-Net, LiteFlowNet, FlowNetC and
others: import from ``daflow_ext.correlation.adapters`` what they import from ``spatial_correlation_sampler``.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from ... import ops
from ...ops import _check

_OP = "spatial_correlation_sample"


def spatial_correlation_sample(
    input1: torch.Tensor,
    input2: torch.Tensor,
    kernel_size: int | Sequence[int] = 1,
    patch_size: int | Sequence[int] = 1,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    dilation_patch: int | Sequence[int] = 1,
    *,
    backend: str = "auto",
) -> torch.Tensor:
    """Correlation of input1 with input2 at every shift of a patch of integer displacements.

    ``out[b, i, j, h, w]`` is the sum over channels and over the kernel positions (u, v) of
    ``input1[b, :, y, x] * input2[b, :, y + dilation_patch * (i - ri), x + dilation_patch * (j - rj)]`` with
    ``(y, x) = stride * (h, w) - padding + dilation * (u, v)`` and patch radii ri, rj; zero where either is outside. Not
    divided by anything: callers of the original divide by C themselves.

    All arguments are integers or pairs (vertical, horizontal). Only odd patch sizes: for even ones the original's CPU
    and CUDA code disagree about the centre.

    Shapes:
        input1, input2: [B, C, H, W]. Returns [B, patch_h, patch_w, oH, oW] in the dtype of the inputs, with
        oH = (H + 2 padding - dilation (kernel_size - 1) - 1) // stride + 1.
    Gradients: input1, input2.
    Raises:
        ValueError, TypeError: an even patch, a kernel larger than the padded input, shapes, dtypes or devices that
            disagree.
    Source: FlowNet (Dosovitskiy et al., ICCV 2015, arXiv 1504.06852), section 3.
    """
    _check.floating(_OP, "input1", input1, 4, "[B, C, H, W]")
    _check.floating(_OP, "input2", input2, 4, "[B, C, H, W]")
    _check.same(_OP, "input1", input1, "input2", input2)
    if input1.shape != input2.shape:
        raise ValueError(f"{_OP}: input1 is {_check.spell(input1)} but input2 is {_check.spell(input2)}")
    kernel, patch = _pair("kernel_size", kernel_size, 1), _pair("patch_size", patch_size, 1)
    stride, padding = _pair("stride", stride, 1), _pair("padding", padding, 0)
    dilation, dilation_patch = _pair("dilation", dilation, 1), _pair("dilation_patch", dilation_patch, 1)
    if any(size % 2 == 0 for size in patch):
        raise ValueError(f"{_OP}: patch_size must be odd, got {tuple(patch)}")
    reach = [step * (size - 1) + 1 for step, size in zip(dilation, kernel, strict=True)]
    sizes = [
        (size + 2 * pad - extent) // step + 1
        for size, pad, extent, step in zip(input1.shape[-2:], padding, reach, stride, strict=True)
    ]
    if min(sizes) < 1:
        raise ValueError(f"{_OP}: a kernel of {tuple(reach)} pixels exceeds the padded input1 {_check.spell(input1)}")

    input1 = input1.contiguous(memory_format=torch.channels_last)
    input2 = input2.contiguous(memory_format=torch.channels_last)
    radius = [size // 2 for size in patch]
    if kernel == [1, 1]:  # only the pixels that the stride keeps
        rows, columns = (
            range(-pad % step, size, step) for pad, step, size in zip(padding, stride, input1.shape[-2:], strict=True)
        )
        skipped = [-(-pad // step) for pad, step in zip(padding, stride, strict=True)]  # outputs in the padding
        out = _shifts(input1, input2, radius, dilation_patch, rows, columns, backend)
        after = [size - before - count for size, before, count in zip(sizes, skipped, out.shape[-2:], strict=True)]
        out = F.pad(out, (skipped[1], after[1], skipped[0], after[0]))
    else:
        rows, columns = (range(size) for size in input1.shape[-2:])
        products = _shifts(input1, input2, radius, dilation_patch, rows, columns, backend)
        out = _kernel_sum(products, kernel, stride, padding, dilation, sizes)
    return out.to(input1.dtype).reshape(input1.shape[0], *patch, *sizes)


class SpatialCorrelationSampler(torch.nn.Module):
    """:func:`spatial_correlation_sample` as a module, with the original's constructor."""

    def __init__(
        self,
        kernel_size: int | Sequence[int] = 1,
        patch_size: int | Sequence[int] = 1,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        dilation_patch: int | Sequence[int] = 1,
        *,
        backend: str = "auto",
    ):
        super().__init__()
        self.kernel_size, self.patch_size, self.stride = kernel_size, patch_size, stride
        self.padding, self.dilation, self.dilation_patch = padding, dilation, dilation_patch
        self.backend = backend

    def forward(self, input1: torch.Tensor, input2: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] twice -> [B, patch_h, patch_w, oH, oW]."""
        return spatial_correlation_sample(
            input1,
            input2,
            self.kernel_size,
            self.patch_size,
            self.stride,
            self.padding,
            self.dilation,
            self.dilation_patch,
            backend=self.backend,
        )


def _shifts(
    input1: torch.Tensor,
    input2: torch.Tensor,
    radius: Sequence[int],
    spacing: Sequence[int],
    rows: range,
    columns: range,
    backend: str,
) -> torch.Tensor:
    """Products of the pixels (rows, columns) of input1 with input2 at every shift: [B, nh * nw, rows, columns].

    Shifts by multiples of ``spacing`` stay within the pixels of equal remainder, so each remainder is a plain window
    on a strided view.
    """
    exact = torch.promote_types(input1.dtype, torch.float32)
    shape = (input1.shape[0], math.prod(2 * r + 1 for r in radius), len(rows), len(columns))
    out = input1.new_empty(shape, dtype=exact)
    for first_y, step_y, some_rows in _by_remainder(rows, spacing[0]):
        for first_x, step_x, some_columns in _by_remainder(columns, spacing[1]):
            y, phase_y = _on_view(some_rows, spacing[0], input1.device)
            x, phase_x = _on_view(some_columns, spacing[1], input1.device)
            y, x = torch.meshgrid(y, x, indexing="ij")
            coords = torch.stack([x, y]).expand(shape[0], -1, -1, -1)
            out[:, :, first_y::step_y, first_x::step_x] = ops.corr_lookup(
                input1[:, :, some_rows.start :: some_rows.step, some_columns.start :: some_columns.step],
                [input2[:, :, phase_y :: spacing[0], phase_x :: spacing[1]]],
                coords,
                radius,
                scale=1.0,
                order="yx",
                out_dtype=exact,
                backend=backend,
            )
    return out


def _by_remainder(positions: range, spacing: int) -> list[tuple[int, int, range]]:
    """Positions split by remainder modulo ``spacing``: (first index, index step, positions) of each part."""
    step = spacing // math.gcd(positions.step, spacing)
    return [(first, step, positions[first::step]) for first in range(min(step, len(positions)))]


def _on_view(positions: range, spacing: int, device: torch.device) -> tuple[torch.Tensor, int]:
    """Positions counted on the view of every ``spacing``-th pixel from their remainder on, and the remainder."""
    phase = positions.start % spacing
    first, step = positions.start // spacing, positions.step // spacing
    return torch.arange(len(positions), device=device, dtype=torch.float32) * step + first, phase


def _kernel_sum(
    products: torch.Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    sizes: Sequence[int],
) -> torch.Tensor:
    """Sum over the dilated kernel, at the strided output positions; products are zero outside input1."""
    padded = F.pad(products, (padding[1], padding[1], padding[0], padding[0]))
    span = [step * (size - 1) + 1 for step, size in zip(stride, sizes, strict=True)]
    terms = [
        padded[..., top : top + span[0] : stride[0], left : left + span[1] : stride[1]]
        for top in range(0, kernel[0] * dilation[0], dilation[0])
        for left in range(0, kernel[1] * dilation[1], dilation[1])
    ]
    return sum(terms[1:], terms[0])


def _pair(name: str, value: int | Sequence[int], least: int) -> list[int]:
    pair = [value, value] if isinstance(value, int) else list(value)
    if len(pair) != 2 or any(not isinstance(number, int) or number < least for number in pair):
        raise ValueError(f"{_OP}: {name} must be an integer >= {least} or a pair of them, got {value!r}")
    return pair
