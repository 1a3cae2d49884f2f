"""The losses of both stages."""

from collections.abc import Sequence

import torch

from .config import LiftLossConfig


def sequence_loss(
    predictions: Sequence[torch.Tensor],
    flow: torch.Tensor,
    valid: torch.Tensor,
    *,
    gamma: float = 0.8,
    max_flow: float = 400.0,
) -> torch.Tensor:
    """RAFT's loss: ``sum_i gamma**(N - 1 - i) mean(valid |f_i - f|_1)``.

    The mean runs over all pixels and both components, invalid ones as zeros; a pixel with |f| >= max_flow is invalid.

    Shapes:
        predictions: N of [B, 2, H, W]; flow [B, 2, H, W]; valid [B, H, W], bool. Returns [].
    Units:
        pixels.
    Source: RAFT (Teed & Deng, ECCV 2020, arXiv 2003.12039).
    """
    counts = valid & (torch.linalg.vector_norm(flow, dim=1) < max_flow)
    truth = torch.where(counts[:, None], flow, 0.0)  # unknown vectors may be NaN
    loss = flow.new_zeros(())
    for place, prediction in enumerate(predictions):
        error = torch.where(counts[:, None], (prediction - truth).abs(), 0.0)
        loss = loss + gamma ** (len(predictions) - 1 - place) * error.mean()
    return loss


def sample_sigmas(count: int, config: LiftLossConfig) -> torch.Tensor:
    """Noise levels [count] in (0, 1): logit-normal, then shifted as the scheduler's are.

    Source: SD3 (Esser et al., ICML 2024, arXiv 2403.03206), sections 3.1 and 5.3.2.
    """
    plain = 1 - torch.sigmoid(config.logit_mean + config.logit_std * torch.randn(count))
    return config.shift * plain / (1 + (config.shift - 1) * plain)


def flow_matching_target(
    clean: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The state (1 - sigma) clean + sigma noise, and its velocity noise - clean, the derivative by sigma.

    Shapes:
        clean, noise [B, ...]; sigma [B].
    """
    level = sigma.view(-1, *[1] * (clean.dim() - 1))
    return (1 - level) * clean + level * noise, noise - clean
