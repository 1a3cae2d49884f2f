"""qk_norm: per-head RMS normalisation of all queries and keys of a layer in one pass."""

from collections.abc import Sequence
from typing import Any

import torch

from .. import backends, reference
from . import _check


def qk_norm(
    streams: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
    *,
    eps: float = 1e-6,
    backend: str = "auto",
) -> list[torch.Tensor]:
    """RMS-normalise every head of every stream: x / sqrt(mean(x^2) + eps) * weight, statistics in float32 or wider.

    Equivalent to: ``[F.rms_norm(x, (d,), w, eps) for x, w in zip(streams, weights)]``. The outputs are buffers of their
    own, so keeping them is all that a feature tap needs.

    Shapes:
        streams: list of [..., heads, d]; weights: as many [d]. Returns a list shaped as streams.
    Gradients: streams and weights.
    On CUDA all streams are one launch, and one more in the backward pass; on the CPU the reference is the way.
    Raises:
        ValueError, TypeError: lists or shapes that do not fit together.
    Source: RMSNorm (arXiv 1910.07467), as qk-norm in SD3.5.
    """
    if len(streams) == 0 or len(streams) != len(weights):
        raise ValueError(f"qk_norm: {len(streams)} streams but {len(weights)} weights; expected one weight per stream")
    for index, (stream, weight) in enumerate(zip(streams, weights, strict=True)):
        _check.floating("qk_norm", f"streams[{index}]", stream, stream.dim(), "[..., heads, d]")
        if stream.dim() < 2 or weight.shape != stream.shape[-1:]:
            raise ValueError(
                f"qk_norm: weights[{index}] is {_check.spell(weight)} but streams[{index}] is {_check.spell(stream)}; "
                "expected [d] and [..., heads, d]"
            )
        _check.same("qk_norm", "streams[0]", streams[0], f"streams[{index}]", stream)
        _check.same("qk_norm", "streams[0]", streams[0], f"weights[{index}]", weight, dtype=False)
    chosen = backends.resolve("qk_norm", backend, streams[0].device)
    if chosen == "reference":
        return reference.qk_norm(streams, weights, eps=eps)
    if len({stream.shape[-1] for stream in streams}) > 1:
        raise ValueError(f"qk_norm: the triton backend needs one head width, got {[s.shape[-1] for s in streams]}")
    return torch.ops.daflow_ext.qk_norm(streams, weights, eps)


@torch.library.custom_op("daflow_ext::qk_norm", mutates_args=())
def _qk_norm(streams: Sequence[torch.Tensor], weights: Sequence[torch.Tensor], eps: float) -> list[torch.Tensor]:
    """The Triton kernel; outputs contiguous. Opaque to torch.compile."""
    from ..kernels.triton import qk_norm as kernels

    return kernels.forward(streams, weights, eps)


@_qk_norm.register_fake
def _(streams: Sequence[torch.Tensor], weights: Sequence[torch.Tensor], eps: float) -> list[torch.Tensor]:
    return [stream.new_empty(stream.shape) for stream in streams]


@torch.library.custom_op("daflow_ext::qk_norm_backward", mutates_args=())
def _qk_norm_backward(
    grads: Sequence[torch.Tensor], streams: Sequence[torch.Tensor], weights: Sequence[torch.Tensor], eps: float
) -> list[torch.Tensor]:
    from ..kernels.triton import qk_norm as kernels

    return kernels.backward(grads, streams, weights, eps)


@_qk_norm_backward.register_fake
def _(
    grads: Sequence[torch.Tensor], streams: Sequence[torch.Tensor], weights: Sequence[torch.Tensor], eps: float
) -> list[torch.Tensor]:
    return [tensor.new_empty(tensor.shape) for tensor in (*streams, *weights)]


def _setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
    streams, weights, ctx.eps = inputs
    ctx.save_for_backward(*streams, *weights)


def _backward(ctx: Any, grads: Sequence[torch.Tensor]) -> tuple:
    count = len(ctx.saved_tensors) // 2
    streams, weights = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
    grads = [torch.zeros_like(x) if grad is None else grad for grad, x in zip(grads, streams, strict=True)]
    found = torch.ops.daflow_ext.qk_norm_backward(grads, streams, weights, ctx.eps)
    return found[:count], found[count:], None


_qk_norm.register_autograd(_backward, setup_context=_setup_context)
