"""qk_norm: per-head RMS normalisation of all queries and keys of a layer in one pass."""

from collections.abc import Sequence

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
    Raises:
        ValueError, TypeError: lists or shapes that do not fit together.
    Source: RMSNorm (arXiv 1910.07467), as qk-norm in SD3.5.
    """
    if len(streams) != len(weights):
        raise ValueError(f"qk_norm: {len(streams)} streams but {len(weights)} weights")
    for index, (stream, weight) in enumerate(zip(streams, weights, strict=True)):
        if weight.shape != stream.shape[-1:]:
            raise ValueError(
                f"qk_norm: weights[{index}] is {_check.spell(weight)} but streams[{index}] is {_check.spell(stream)}"
            )
    chosen = backends.resolve("qk_norm", backend, streams[0].device)
    if chosen == "reference":
        return reference.qk_norm(streams, weights, eps=eps)
    raise NotImplementedError
