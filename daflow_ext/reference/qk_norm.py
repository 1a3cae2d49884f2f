"""Reference of ``qk_norm``: RMS normalisation over the channels of each head."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def qk_norm(
    streams: Sequence[torch.Tensor], weights: Sequence[torch.Tensor], *, eps: float = 1e-6
) -> list[torch.Tensor]:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis of every stream; see :func:`daflow_ext.ops.qk_norm`."""
    return [F.rms_norm(x, x.shape[-1:], w.to(x.dtype), eps) for x, w in zip(streams, weights, strict=True)]
